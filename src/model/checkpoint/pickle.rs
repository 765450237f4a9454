//! The part of Python's pickle format that `torch.save` uses for a dictionary of tensors.
//!
//! Nothing is ever executed: a pickle may only name the few constructors below, and everything else
//! is an error. Values share their parts, so that no input can take more than a small multiple of its
//! own size, and nesting is bounded, so that none can exhaust the stack.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    rc::Rc,
};

/// The deepest nesting of tuples, lists and dictionaries; `torch.save` needs about five.
const DEEPEST: usize = 32;

/// One entry of the pickled dictionary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PickledTensor {
    /// `FloatStorage` and the like: the element type.
    pub storage_class: Rc<str>,
    /// The name of the archive's record that holds the elements.
    pub key: Rc<str>,
    /// Elements in the storage.
    pub storage_length: i64,
    /// Of the first element, in elements.
    pub offset: i64,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

/// The longest text: names are far shorter, and each may be recalled many times.
const LONGEST_TEXT: usize = 512;
/// The most dimensions of a tensor.
const MOST_DIMENSIONS: usize = 8;

/// A pickle that gives no tensors: what is wrong with it, for a message that names the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PickleError {
    /// It is no pickle that Python could have written whole.
    Damaged(String),
    /// It holds something other than a dictionary of tensors.
    Foreign(String),
}

impl From<String> for PickleError {
    fn from(problem: String) -> Self {
        Self::Damaged(problem)
    }
}

impl From<&str> for PickleError {
    fn from(problem: &str) -> Self {
        Self::Damaged(problem.into())
    }
}

/// Reads a pickled dictionary from names to tensors; other values in it are left out.
///
/// # Errors
/// [`PickleError`] for anything else.
pub(super) fn read_tensors(pickle: &[u8]) -> Result<BTreeMap<Rc<str>, PickledTensor>, PickleError> {
    let mut machine = Machine { input: pickle, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let Value::Dict(entries) = machine.run()? else {
        return Err(PickleError::Foreign("it holds no dictionary of tensors".into()));
    };
    let mut tensors = BTreeMap::new();
    for (name, value) in entries.list {
        match (name, value) {
            (Value::Text(name), Value::Tensor(tensor)) => match tensors.entry(name) {
                Entry::Vacant(place) => drop(place.insert(Rc::unwrap_or_clone(tensor))),
                Entry::Occupied(place) => return Err(format!("it holds `{}` twice", place.key()).into()),
            },
            (Value::Text(name), Value::Dict(_)) => {
                let problem = format!("`{name}` in it is a dictionary of its own (a training checkpoint?)");
                return Err(PickleError::Foreign(problem));
            }
            _ => {}
        }
    }
    Ok(tensors)
}

#[derive(Clone, Debug)]
enum Value {
    /// None, a float, or anything else that no tensor needs.
    Other,
    Bool,
    Integer(i64),
    Text(Rc<str>),
    Tuple(Rc<Nested<Vec<Value>>>),
    List(usize),
    Dict(Nested<Entries>),
    Constructor(Constructor),
    Storage(Rc<Storage>),
    Tensor(Rc<PickledTensor>),
}

type Entries = Vec<(Value, Value)>;

/// A container and how deeply it is nested.
#[derive(Clone, Debug)]
struct Nested<T> {
    depth: usize,
    list: T,
}

#[derive(Clone, Debug)]
enum Constructor {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageClass(Rc<str>),
}

#[derive(Debug)]
struct Storage {
    class: Rc<str>,
    key: Rc<str>,
    length: i64,
}

struct Machine<'a> {
    input: &'a [u8],
    stack: Vec<Value>,
    /// Stack heights.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Value, PickleError> {
        loop {
            let opcode = self.byte()?;
            match opcode {
                0x80 => {
                    let version = self.byte()?;
                    if version > 5 {
                        return Err(format!("pickle protocol {version} is unknown").into());
                    }
                }
                // FRAME: a length that only speeds up streaming.
                0x95 => drop(self.take(8)?),
                b'N' => self.stack.push(Value::Other),
                0x88 | 0x89 => self.stack.push(Value::Bool),
                b'K' => {
                    let value = self.byte()?;
                    self.stack.push(Value::Integer(value.into()));
                }
                b'M' => {
                    let bytes = self.array()?;
                    self.stack.push(Value::Integer(u16::from_le_bytes(bytes).into()));
                }
                b'J' => {
                    let bytes = self.array()?;
                    self.stack.push(Value::Integer(i32::from_le_bytes(bytes).into()));
                }
                0x8a => {
                    let length = self.byte()?;
                    let value = little_endian(self.take(length.into())?);
                    self.stack.push(value.map_or(Value::Other, Value::Integer));
                }
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Value::Other);
                }
                b'X' => {
                    let length = self.array().map(u32::from_le_bytes)?;
                    self.push_text(length as usize)?;
                }
                0x8c | b'U' => {
                    let length = self.byte()?;
                    self.push_text(length.into())?;
                }
                b'T' => {
                    let length = self.array().map(u32::from_le_bytes)?;
                    self.push_text(length as usize)?;
                }
                b'(' => self.marks.push(self.stack.len()),
                b')' => self.push_tuple(Vec::new())?,
                0x85..=0x87 => {
                    let count = usize::from(opcode - 0x84);
                    let start = self.stack.len().checked_sub(count).ok_or(UNDERFLOW)?;
                    let items = self.split_off(start)?;
                    self.push_tuple(items)?;
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push_tuple(items)?;
                }
                b']' => self.stack.push(Value::List(1)),
                b'a' => {
                    let item = self.pop()?;
                    self.append(&[item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(&items)?;
                }
                b'}' => self.stack.push(empty_dict()),
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(items)?;
                }
                b'q' => {
                    let index = self.byte()?;
                    self.memoize(index.into())?;
                }
                b'r' => {
                    let index = self.array().map(u32::from_le_bytes)?;
                    self.memoize(index)?;
                }
                0x94 => {
                    let index = u32::try_from(self.memo.len()).map_err(|_| "it memoizes too much")?;
                    self.memoize(index)?;
                }
                b'h' => {
                    let index = self.byte()?;
                    self.recall(index.into())?;
                }
                b'j' => {
                    let index = self.array().map(u32::from_le_bytes)?;
                    self.recall(index)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.stack.push(constructor(module, name)?);
                }
                0x93 => match (self.pop()?, self.pop()?) {
                    (Value::Text(name), Value::Text(module)) => {
                        self.stack.push(constructor(&module, &name)?);
                    }
                    _ => return Err("it names a constructor by something other than text".into()),
                },
                b'Q' => {
                    let id = self.pop()?;
                    self.stack.push(storage(&id)?);
                }
                b'R' | 0x81 => {
                    let arguments = self.pop()?;
                    let constructor = self.pop()?;
                    self.stack.push(construct(&constructor, &arguments)?);
                }
                // BUILD: attributes such as `_metadata`, which hold no tensors.
                b'b' => drop(self.pop()?),
                b'.' => return Ok(self.pop()?),
                other => return Err(format!("pickle opcode 0x{other:02x} is not used for tensors").into()),
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.input.split_at_checked(count).ok_or("its pickle ends early")?;
        self.input = rest;
        Ok(taken)
    }

    fn array<const COUNT: usize>(&mut self) -> Result<[u8; COUNT], String> {
        let (taken, rest) = self.input.split_first_chunk().ok_or("its pickle ends early")?;
        self.input = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.array().map(|[byte]| byte)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let length = self.input.iter().position(|&byte| byte == b'\n').ok_or("its pickle ends early")?;
        let line = self.take(length)?;
        self.take(1)?;
        utf8(line)
    }

    fn push_text(&mut self, length: usize) -> Result<(), String> {
        let text = utf8(self.take(length)?)?;
        if text.len() > LONGEST_TEXT {
            return Err(format!("a text in it is {} bytes long", text.len()));
        }
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(UNDERFLOW.into());
        }
        self.stack.pop().ok_or_else(|| UNDERFLOW.into())
    }

    fn split_off(&mut self, start: usize) -> Result<Vec<Value>, String> {
        if start < self.marks.last().copied().unwrap_or(0) {
            return Err(UNDERFLOW.into());
        }
        Ok(self.stack.split_off(start))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let start = self.marks.pop().ok_or(UNDERFLOW)?;
        if start > self.stack.len() {
            return Err(UNDERFLOW.into());
        }
        Ok(self.stack.split_off(start))
    }

    fn push_tuple(&mut self, items: Vec<Value>) -> Result<(), String> {
        let depth = depth_around(&items)?;
        self.stack.push(Value::Tuple(Rc::new(Nested { depth, list: items })));
        Ok(())
    }

    /// Lists are part of no tensor: only their depth is kept.
    fn append(&mut self, items: &[Value]) -> Result<(), String> {
        let inner = depth_around(items)?;
        match self.stack.last_mut() {
            Some(Value::List(depth)) => {
                *depth = inner.max(*depth);
                Ok(())
            }
            _ => Err("it appends to something other than a list".into()),
        }
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<(), String> {
        let inner = depth_around(&items)?;
        let Some(Value::Dict(dict)) = self.stack.last_mut() else {
            return Err("it sets items of something other than a dictionary".into());
        };
        dict.depth = inner.max(dict.depth);
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            let value = items.next().ok_or("a dictionary's last key has no value")?;
            dict.list.push((key, value));
        }
        Ok(())
    }

    /// A container is memoized while it is still empty, and what it holds later is not seen through
    /// the memo; `torch.save` never recalls the dictionary of tensors. Remembering it as [`Value::Other`]
    /// turns any pickle that does into an error rather than an empty dictionary.
    fn memoize(&mut self, index: u32) -> Result<(), String> {
        let value = match self.stack.last().ok_or(UNDERFLOW)? {
            Value::Dict(_) | Value::List(_) => Value::Other,
            value => value.clone(),
        };
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), String> {
        let value = self.memo.get(&index).ok_or("it recalls a value that was never stored")?;
        self.stack.push(value.clone());
        Ok(())
    }
}

const UNDERFLOW: &str = "its pickle takes more values than it made";

fn empty_dict() -> Value {
    Value::Dict(Nested { depth: 1, list: Vec::new() })
}

fn depth_around(items: &[Value]) -> Result<usize, String> {
    let inner = items.iter().map(|item| match item {
        Value::Tuple(tuple) => tuple.depth,
        Value::Dict(dict) => dict.depth,
        Value::List(depth) => *depth,
        _ => 0,
    });
    match inner.max().unwrap_or(0) + 1 {
        depth if depth <= DEEPEST => Ok(depth),
        _ => Err("its values are nested too deeply".into()),
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "a text in it is not UTF-8".into())
}

/// A two's complement integer of up to 8 bytes. No tensor needs a longer one, but other values beside
/// the tensors may.
fn little_endian(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut extended = [if negative { 0xff } else { 0 }; 8];
    extended.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(extended))
}

fn constructor(module: &str, name: &str) -> Result<Value, PickleError> {
    Ok(Value::Constructor(match (module, name) {
        ("collections", "OrderedDict") => Constructor::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Constructor::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Constructor::RebuildParameter,
        ("torch", class) if class.ends_with("Storage") => Constructor::StorageClass(class.into()),
        _ => {
            let problem = format!("it holds a `{module}.{name}`, which is no plain tensor");
            return Err(PickleError::Foreign(problem));
        }
    }))
}

fn storage(id: &Value) -> Result<Value, String> {
    if let Value::Tuple(parts) = id
        && let [
            Value::Text(kind),
            Value::Constructor(Constructor::StorageClass(class)),
            Value::Text(key),
            _,
            Value::Integer(length),
        ] = &parts.list[..]
        && &**kind == "storage"
        && *length >= 0
    {
        return Ok(Value::Storage(Rc::new(Storage {
            class: class.clone(),
            key: key.clone(),
            length: *length,
        })));
    }
    Err("it refers to something other than a storage".into())
}

fn construct(constructor: &Value, arguments: &Value) -> Result<Value, String> {
    let (Value::Constructor(constructor), Value::Tuple(arguments)) = (constructor, arguments) else {
        return Err("it calls something other than a constructor".into());
    };
    match (constructor, &arguments.list[..]) {
        (Constructor::OrderedDict, []) => Ok(empty_dict()),
        (Constructor::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
        (
            Constructor::RebuildTensor,
            [Value::Storage(storage), Value::Integer(offset), Value::Tuple(shape), Value::Tuple(strides), ..],
        ) => {
            let (shape, strides) = (integers(shape)?, integers(strides)?);
            if *offset < 0 || shape.len() != strides.len() || shape.iter().chain(&strides).any(|&n| n < 0) {
                return Err("a tensor in it has an impossible shape".into());
            }
            Ok(Value::Tensor(Rc::new(PickledTensor {
                storage_class: storage.class.clone(),
                key: storage.key.clone(),
                storage_length: storage.length,
                offset: *offset,
                shape,
                strides,
            })))
        }
        _ => Err("it calls a constructor with the wrong arguments".into()),
    }
}

fn integers(tuple: &Nested<Vec<Value>>) -> Result<Vec<i64>, String> {
    if tuple.list.len() > MOST_DIMENSIONS {
        return Err(format!("a tensor in it has {} dimensions", tuple.list.len()));
    }
    let integer = |value: &Value| match value {
        Value::Integer(integer) => Ok(*integer),
        _ => Err("a shape in it is made of something other than integers".to_owned()),
    };
    tuple.list.iter().map(integer).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            index::StoredDtype,
            pickle_writer::{TensorToPickle, write_tensors},
        },
        *,
    };
    use proptest::{collection::vec, prelude::*};

    fn written(names: &[String], shape: &[i64], strides: &[i64]) -> Vec<u8> {
        let tensors: Vec<_> = names
            .iter()
            .map(|name| TensorToPickle { name, dtype: &StoredDtype::BF16, shape, strides })
            .collect();
        write_tensors(&tensors)
    }

    #[test]
    fn what_python_writes_for_an_ordered_dict_is_read() {
        // pickle.dumps(OrderedDict(w=Parameter(..))) with the attribute `_metadata`, protocol 2,
        // assembled by hand from the opcodes that CPython emits.
        let mut pickle = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01".to_vec();
        pickle.extend(b"X\x01\x00\x00\x00wq\x02ctorch._utils\n_rebuild_parameter\nq\x03");
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\nq\x04((X\x07\x00\x00\x00storageq\x05");
        pickle.extend(
            b"ctorch\nFloatStorage\nq\x06X\x01\x00\x00\x007q\x07X\x03\x00\x00\x00cpuq\x08K\x08tq\x09Q",
        );
        pickle.extend(b"K\x02K\x03K\x02\x86q\x0aK\x02K\x01\x86q\x0b\x89h\x00)Rq\x0ctq\x0dRq\x0e");
        pickle.extend(b"\x88h\x00)Rq\x0f\x87q\x10Rq\x11s");
        pickle.extend(b"}q\x12X\x09\x00\x00\x00_metadataq\x13h\x00)Rq\x14sb.");
        let tensors = read_tensors(&pickle).unwrap();
        let expected = PickledTensor {
            storage_class: "FloatStorage".into(),
            key: "7".into(),
            storage_length: 8,
            offset: 2,
            shape: vec![3, 2],
            strides: vec![2, 1],
        };
        assert_eq!(tensors, BTreeMap::from([("w".into(), expected)]));
    }

    #[test]
    fn anything_but_tensors_is_refused_by_name() {
        let refusal = |pickle: &[u8]| match read_tensors(pickle).unwrap_err() {
            PickleError::Foreign(problem) => problem,
            PickleError::Damaged(problem) => panic!("{problem}"),
        };
        let problem = refusal(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.");
        assert!(problem.contains("os.system"), "{problem}");
        let problem = refusal(b"\x80\x02}X\x05\x00\x00\x00model}s.");
        assert!(problem.contains("`model`") && problem.contains("dictionary of its own"), "{problem}");
        assert!(refusal(b"\x80\x02].").contains("no dictionary of tensors"));
    }

    #[test]
    fn values_beside_the_tensors_are_left_out_however_large() {
        let mut pickle = written(&["w".into()], &[2], &[1]);
        assert_eq!(pickle.pop(), Some(b'.'));
        pickle.extend(b"X\x04\x00\x00\x00seed\x8a\x0b\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01s");
        pickle.extend(b"X\x04\x00\x00\x00note](K\x01K\x02es.");
        assert_eq!(read_tensors(&pickle).unwrap().keys().map(|name| &**name).collect::<Vec<_>>(), ["w"]);
    }

    #[test]
    fn nesting_is_bounded() {
        let mut pickle = b"\x80\x02)".to_vec();
        pickle.extend(std::iter::repeat_n(0x85, 1 << 20));
        pickle.push(b'.');
        let error = read_tensors(&pickle).unwrap_err();
        assert_eq!(error, PickleError::Damaged("its values are nested too deeply".into()));
    }

    #[test]
    fn a_recalled_dictionary_is_no_empty_one() {
        assert!(read_tensors(b"\x80\x02}q\x00h\x00.").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            names in proptest::collection::btree_set("[a-z.0-9]{1,40}", 0..20),
            shape in vec(1_i64..1000, 0..4),
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let strides = super::super::mapped::contiguous_strides(&shape);
            let read = read_tensors(&written(&names, &shape, &strides)).unwrap();
            prop_assert_eq!(read.keys().map(|name| name.to_string()).collect::<Vec<_>>(), names);
            for (key, tensor) in read.values().enumerate() {
                prop_assert_eq!(&tensor.shape, &shape);
                prop_assert_eq!(&tensor.strides, &strides);
                prop_assert_eq!(&*tensor.storage_class, "BFloat16Storage");
                prop_assert_eq!(&*tensor.key, key.to_string());
                prop_assert_eq!(tensor.storage_length, shape.iter().product::<i64>());
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
            let _ = read_tensors(&bytes);
        }

        #[test]
        fn damaged_pickles_never_panic(
            cut in any::<prop::sample::Index>(),
            flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let names = ["a".to_owned(), "b.weight".to_owned()];
            let mut pickle = written(&names, &[3, 4], &[4, 1]);
            for (place, value) in flips {
                let place = place.index(pickle.len());
                pickle[place] = value;
            }
            pickle.truncate(cut.index(pickle.len() + 1));
            let _ = read_tensors(&pickle);
        }

        #[test]
        fn every_opcode_in_any_order_never_panics(
            opcodes in vec(
                prop::sample::select(b"\x80\x95N\x88\x89KMJ\x8aGX\x8cUT()\x85\x86\x87t]ae}suqr\x94hjc\x93QR\x81b.\x00\x01\n".to_vec()),
                0..300,
            ),
        ) {
            let _ = read_tensors(&opcodes);
        }
    }
}
