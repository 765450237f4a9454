//! The few calls that rdkafka's safe interface lacks, or panics in.

use super::receipt::TopicPartition;
use crate::record::Header;
use rdkafka::TopicPartitionList;
use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::message::BorrowedMessage;
use std::ffi::{CStr, CString};
use std::ptr;
use std::slice;

/// A record's headers. rdkafka's own iterator panics on a name that is no UTF-8; here such bytes are
/// replaced, and the value is kept as it is.
pub(super) fn headers(message: &BorrowedMessage<'_>) -> Vec<Header> {
    let mut list = ptr::null_mut();
    // SAFETY: the message is borrowed, so its pointer and the header list it owns outlive this call.
    let error = unsafe { sys::rd_kafka_message_headers(message.ptr(), &mut list) };
    if error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || list.is_null() {
        return Vec::new();
    }
    // SAFETY: `list` was just returned for this message.
    let count = unsafe { sys::rd_kafka_header_cnt(list) };
    let mut headers = Vec::with_capacity(count);
    for index in 0..count {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the index is within the list, and the three outputs are valid for writing.
        let error = unsafe { sys::rd_kafka_header_get_all(list, index, &mut name, &mut value, &mut size) };
        if error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
            continue;
        }
        // SAFETY: librdkafka keeps names NUL-terminated, and `value` holds `size` bytes unless null.
        let (name, value) = unsafe {
            let name = CStr::from_ptr(name).to_string_lossy().into_owned();
            let value = (!value.is_null()).then(|| slice::from_raw_parts(value.cast::<u8>(), size).to_vec());
            (name, value)
        };
        headers.push(Header { name, value });
    }
    headers
}

/// Whether the consumer is a member of its group, as far as it knows itself: no longer once the request to
/// leave is on its way.
pub(super) fn is_member<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> bool {
    // SAFETY: the client is alive. The name that is returned is NUL-terminated and this function's own, and
    // it is given back by the library's own function.
    unsafe {
        let name = sys::rd_kafka_memberid(consumer.client().native_ptr());
        let is_member = !name.is_null() && *name != 0;
        if !name.is_null() {
            sys::rd_kafka_mem_free(consumer.client().native_ptr(), name.cast());
        }
        is_member
    }
}

/// The offset and metadata of each entry of a list, in order. rdkafka's own accessor panics on
/// metadata that is no UTF-8, and anyone may have committed that.
pub(super) fn offsets_with_metadata(list: &TopicPartitionList) -> Vec<(i64, Vec<u8>)> {
    // SAFETY: the list owns `cnt` entries, each of whose metadata is `metadata_size` bytes or null.
    unsafe {
        let raw = &*list.ptr();
        if raw.elems.is_null() {
            return Vec::new();
        }
        slice::from_raw_parts(raw.elems, usize::try_from(raw.cnt).unwrap_or(0))
            .iter()
            .map(|entry| {
                let metadata = if entry.metadata.is_null() {
                    Vec::new()
                } else {
                    slice::from_raw_parts(entry.metadata.cast::<u8>(), entry.metadata_size).to_vec()
                };
                (entry.offset, metadata)
            })
            .collect()
    }
}

/// The beginning and end of a partition's log as its last fetch found them; no request is made. Asking
/// has librdkafka set up its record of the partition, if it had none.
fn cached_watermarks<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    source: &TopicPartition,
) -> Option<(i64, i64)> {
    let topic = CString::new(source.topic.as_bytes()).ok()?;
    let (mut low, mut high) = (0, -1);
    // SAFETY: the consumer is alive, the name is NUL-terminated, both outputs are valid for writing.
    let error = unsafe {
        sys::rd_kafka_get_watermark_offsets(
            consumer.client().native_ptr(),
            topic.as_ptr(),
            source.partition,
            &mut low,
            &mut high,
        )
    };
    (error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then_some((low, high))
}

/// One past the last record of a partition as its last fetch found it; `None` before the first fetch.
pub(super) fn cached_end<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    source: &TopicPartition,
) -> Option<i64> {
    cached_watermarks(consumer, source).map(|(_, end)| end).filter(|end| *end >= 0)
}

/// Has librdkafka set up its records of partitions, so that they can be paused before they are
/// assigned; it refuses to pause a partition of a topic that it has not met.
pub(super) fn make_known<C: ConsumerContext>(consumer: &BaseConsumer<C>, sources: &[TopicPartition]) {
    for source in sources {
        // What it answers does not matter here.
        let _ = cached_watermarks(consumer, source);
    }
}

/// The group generation that the consumer is a member of now, if it is one.
///
/// Offsets sent to a transaction by a client without a generation pass unfenced, so the committer
/// must not send them then; the safe interface doesn't show the number.
pub(super) fn generation<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<i32> {
    // SAFETY: the consumer is alive; the metadata is a copy that is destroyed right after.
    let generation = unsafe {
        let metadata = sys::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
        if metadata.is_null() {
            return None;
        }
        let generation = sys::rd_kafka_consumer_group_metadata_generation_id(metadata);
        sys::rd_kafka_consumer_group_metadata_destroy(metadata);
        generation
    };
    (generation >= 0).then_some(generation)
}
