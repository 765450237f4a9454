//! Which line of a file a record of it begins on.

use std::collections::VecDeque;
use std::io::{self, Read};

/// Passes bytes on and notes where lines with something in them begin, until they are asked for. The CSV
/// reader's own line numbers are those of the line break before a record.
pub(super) struct Lines<R> {
    reader: R,
    /// Bytes passed on.
    offset: u64,
    line: usize,
    last: u8,
    /// Nothing of this line has been seen but its beginning.
    at_start: bool,
    /// Offset and number of each line that is not empty, from the one asked for last.
    starts: VecDeque<(u64, usize)>,
}

impl<R: Read> Lines<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, offset: 0, line: 1, last: 0, at_start: true, starts: VecDeque::new() }
    }

    /// The line of the record that is the first at or behind `offset`. Later calls name later offsets.
    pub fn of_record(&mut self, offset: u64) -> usize {
        while self.starts.front().is_some_and(|(start, _)| *start < offset) {
            self.starts.pop_front();
        }
        self.starts.front().map_or(self.line, |(_, line)| *line)
    }

    fn note(&mut self, byte: u8) {
        // CR, LF and CRLF each end a line.
        if byte == b'\n' || self.last == b'\r' {
            self.line += 1;
            self.at_start = true;
        }
        if self.at_start && !matches!(byte, b'\r' | b'\n') {
            self.starts.push_back((self.offset, self.line));
            self.at_start = false;
        }
        self.last = byte;
        self.offset += 1;
    }
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        for &byte in &buffer[..count] {
            self.note(byte);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_end_counts_once() {
        let text = b"a\nb\r\n\r\n\nc\rd\r\r\ne";
        let mut lines = Lines::new(&text[..]);
        io::copy(&mut lines, &mut io::sink()).unwrap();
        assert_eq!(lines.starts, [(0, 1), (2, 2), (8, 5), (10, 6), (14, 8)]);
        assert_eq!(lines.of_record(0), 1);
        assert_eq!(lines.of_record(4), 5, "what is empty is passed over");
        assert_eq!(lines.of_record(14), 8);
        assert_eq!(lines.of_record(15), 8);
    }
}
