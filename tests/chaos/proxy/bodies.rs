//! The bodies of replies that a row makes up or reads: those with nothing in them but an error.

use super::frames::{Request, api};

/// Error codes of the Kafka protocol.
pub mod code {
    pub const NOT_COORDINATOR: i16 = 16;
    pub const ILLEGAL_GENERATION: i16 = 22;
    pub const UNKNOWN_MEMBER_ID: i16 = 25;
    pub const TOPIC_AUTHORIZATION_FAILED: i16 = 29;
    pub const INVALID_PRODUCER_EPOCH: i16 = 47;
    pub const CONCURRENT_TRANSACTIONS: i16 = 51;
    pub const FENCED_INSTANCE_ID: i16 = 82;
    pub const PRODUCER_FENCED: i16 = 90;
}

/// The reply to `request` that says `code` and nothing else, in the versions that librdkafka 2.12
/// speaks. `None` where no such reply is known here.
pub fn refusal(request: &Request, code: i16) -> Option<Vec<u8>> {
    let mut body = vec![0; 4];
    body.extend(code.to_be_bytes());
    match (request.api, request.version) {
        (api::END_TXN | api::ADD_OFFSETS_TO_TXN, 0..=2) | (api::HEARTBEAT, 1..=3) => {}
        (api::INIT_PRODUCER_ID, 0..=1) => body.extend([0xff; 10]),
        (api::INIT_PRODUCER_ID, 2..=4) => {
            // The response header's empty tagged fields, and the body's.
            body.insert(0, 0);
            body.extend([0xff; 10]);
            body.push(0);
        }
        (api::JOIN_GROUP, 2..=5) => {
            // Generation -1, then protocol, leader and member id empty, and no members.
            body.extend([0xff; 4]);
            body.extend([0; 2 + 2 + 2 + 4]);
        }
        _ => return None,
    }
    Some(body)
}

/// Puts `code` into every partition of the reply to a `TxnOffsetCommit` of version 3, the first flexible
/// one. A reply of another shape stays as it is.
pub fn refuse_offsets(body: &mut [u8], code: i16) {
    // The response header's tagged fields, and the throttle time.
    let mut at = 1 + 4;
    let Some(topics) = length(body, &mut at) else { return };
    for _ in 0..topics {
        let Some(name) = length(body, &mut at) else { return };
        at += name;
        let Some(partitions) = length(body, &mut at) else { return };
        for _ in 0..partitions {
            at += 4;
            let Some(field) = body.get_mut(at..at + 2) else { return };
            field.copy_from_slice(&code.to_be_bytes());
            at += 2 + 1;
        }
        at += 1;
    }
}

/// The length in front of a compact array or string: an unsigned varint, one too large.
fn length(body: &[u8], at: &mut usize) -> Option<usize> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = *body.get(*at)?;
        *at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value.checked_sub(1);
        }
        shift += 7;
    }
}

/// The error code in the reply to an `EndTxn` of version 0 to 2.
pub fn end_txn_code(body: &[u8]) -> Option<i16> {
    body.get(4..6).map(|bytes| i16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Whether an `EndTxn` of version 0 to 2 asks for a commit rather than an abort.
pub fn is_commit(request: &Request) -> bool {
    request.api == api::END_TXN && request.body().last() == Some(&1)
}

/// Makes the reply to a `Produce` of version 3 or later say `code` of the first partition in it, which
/// is enough for a transaction.
pub fn refuse_produce(version: i16, body: &mut [u8], code: i16) {
    // Strings and arrays are counted in 2 and 4 bytes, from version 9 on in one (of small numbers, plus
    // one), after the header's tagged fields.
    let length = |at: usize| body.get(at).map_or(0, |byte| usize::from(*byte));
    let at = match version {
        9.. => 3 + length(2).saturating_sub(1) + 1,
        _ => 4 + 2 + (length(4) << 8 | length(5)) + 4,
    };
    if let Some(place) = body.get_mut(at + 4..at + 6) {
        place.copy_from_slice(&code.to_be_bytes());
    }
}
