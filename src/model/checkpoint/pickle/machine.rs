//! The stack machine that a pickle is a program for.

use super::PickleError;
use super::value::{Nested, Value, construct, constructor, depth_around, empty_dict, storage};
use std::{collections::HashMap, rc::Rc};

/// The longest text: names are far shorter, and each may be recalled many times.
const LONGEST_TEXT: usize = 512;
const UNDERFLOW: &str = "its pickle takes more values than it made";

pub(super) struct Machine<'a> {
    input: &'a [u8],
    stack: Vec<Value>,
    /// Stack heights.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() }
    }

    /// Follows the opcodes to the end; the value that is left.
    pub(super) fn run(&mut self) -> Result<Value, PickleError> {
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
