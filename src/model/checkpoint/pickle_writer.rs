//! Writing the pickle of a dictionary of tensors, as `torch.save` writes it (protocol 2).

use super::index::StoredDtype;

/// One tensor; the elements of the `n`th are in the record `data/n`.
pub(super) struct TensorToPickle<'a> {
    pub name: &'a str,
    pub dtype: &'a StoredDtype,
    pub shape: &'a [i64],
    pub strides: &'a [i64],
}

/// The record `data.pkl`.
pub(super) fn write_tensors(tensors: &[TensorToPickle<'_>]) -> Vec<u8> {
    let mut out = vec![0x80, 2, b'}', b'('];
    for (key, tensor) in tensors.iter().enumerate() {
        text(&mut out, tensor.name);
        global(&mut out, "torch._utils", "_rebuild_tensor_v2");
        out.push(b'(');
        let elements = tensor.shape.iter().product();
        storage(&mut out, tensor.dtype, key, elements);
        integer(&mut out, 0);
        integers(&mut out, tensor.shape);
        integers(&mut out, tensor.strides);
        const NEWFALSE: u8 = 0x89;
        out.push(NEWFALSE);
        // No hooks for the backward pass.
        global(&mut out, "collections", "OrderedDict");
        out.extend(b")RtR");
    }
    out.extend(b"u.");
    out
}

fn storage(out: &mut Vec<u8>, dtype: &StoredDtype, key: usize, elements: i64) {
    out.push(b'(');
    text(out, "storage");
    let class = match dtype {
        StoredDtype::F32 => "FloatStorage",
        StoredDtype::F16 => "HalfStorage",
        StoredDtype::BF16 => "BFloat16Storage",
        StoredDtype::Other(class) => class,
    };
    global(out, "torch", class);
    text(out, &key.to_string());
    text(out, "cpu");
    integer(out, elements);
    out.extend(b"tQ");
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn global(out: &mut Vec<u8>, module: &str, name: &str) {
    out.push(b'c');
    for part in [module, name] {
        out.extend(part.as_bytes());
        out.push(b'\n');
    }
}

fn integer(out: &mut Vec<u8>, value: i64) {
    match i32::try_from(value) {
        Ok(value) => {
            out.push(b'J');
            out.extend(value.to_le_bytes());
        }
        Err(_) => {
            const LONG1: u8 = 0x8a;
            out.extend([LONG1, 8]);
            out.extend(value.to_le_bytes());
        }
    }
}

fn integers(out: &mut Vec<u8>, values: &[i64]) {
    out.push(b'(');
    values.iter().for_each(|&value| integer(out, value));
    out.push(b't');
}
