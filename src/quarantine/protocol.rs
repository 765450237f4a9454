//! What a worker and its child say to each other.
//!
//! To the child, on its standard input: frames of a length (four bytes, little-endian) and as many
//! bytes. The first is a [`Hello`] as JSON; then each image is two, its name and its file. From the
//! child, on its standard output: a [`Reply`] a line, as JSON, the first of them [`Reply::Ready`].

use crate::{
    fault::ItemError,
    image::ImageSettings,
    inference::InferenceSettings,
    model::ModelSettings,
    score::{Answer, ModelVersion},
    telemetry::TelemetrySettings,
};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// What a child is to do as its parent does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub model: ModelSettings,
    pub image: ImageSettings,
    pub inference: InferenceSettings,
    pub telemetry: TelemetrySettings,
}

/// A line of a child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The model is loaded, and scored a blank image in so many milliseconds.
    Ready {
        version: ModelVersion,
        warm_up_ms: u64,
    },
    Scored {
        answer: Answer,
        width: u32,
        height: u32,
    },
    Rejected {
        error: ItemError,
    },
}

/// One frame around `content`.
///
/// # Errors
/// When it is longer than a frame can say.
pub fn frame(content: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(content.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(4 + content.len());
    frame.extend(length.to_le_bytes());
    frame.extend(content);
    Ok(frame)
}

/// The next frame's content; `None` where the stream ends before it.
///
/// # Errors
/// When the stream ends within it, or breaks.
pub fn read_frame(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u32::from_le_bytes(length);
    // What is announced is read as it comes, so that a wrong length takes no memory.
    let mut content = Vec::new();
    let read = stream.take(u64::from(length)).read_to_end(&mut content)?;
    if read < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(content))
}

/// Writes one line, at once.
///
/// # Errors
/// When nobody reads any more.
pub fn write_reply(stream: &mut impl Write, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::{DecodeKind, ScoreValue};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_come_as_they_went(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..99), 0..9)) {
            let stream: Vec<u8> = contents.iter().flat_map(|content| frame(content).unwrap()).collect();
            let mut rest = stream.as_slice();
            for content in contents {
                prop_assert_eq!(read_frame(&mut rest).unwrap(), Some(content));
            }
            prop_assert_eq!(read_frame(&mut rest).unwrap(), None);
        }

        #[test]
        fn a_score_arrives_bit_for_bit(distribution in prop::collection::vec(0.0_f32..1.0, 1..40), score: f64) {
            prop_assume!(score.is_finite());
            let value = ScoreValue { score, distribution, std: score.abs().sqrt() };
            let decode = DecodeKind::Verified;
            let answer = Answer { scores: vec![value], text: "fine\n\"art\"".into(), tokens: vec![7], decode, forwards: 2 };
            let reply = Reply::Scored { answer, width: 3, height: 4 };
            let mut line = Vec::new();
            write_reply(&mut line, &reply).unwrap();
            prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            prop_assert_eq!(serde_json::from_slice::<Reply>(&line).unwrap(), reply);
        }
    }

    #[test]
    fn a_stream_that_ends_within_a_frame_is_broken() {
        let whole = frame(b"content").unwrap();
        assert!(read_frame(&mut &whole[..8]).is_err());
        assert_eq!(read_frame(&mut &whole[..3]).unwrap(), None);
    }
}
