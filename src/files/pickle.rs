//! Reads the pickle of a PyTorch state dict: each tensor's name, and where its elements lie in which storage.
//!
//! A pickle is a program for a stack machine that makes objects. Nothing of it is run here: calls are kept as what they
//! are, and only those that PyTorch makes of tensors are understood. Values lie in one list and name each other by
//! number, so that a hostile program can neither nest them deep nor double them: memory is linear in its length.
//! <https://docs.python.org/3/library/pickletools.html>

use safetensors::tensor::Dtype;
use std::collections::HashMap;

/// A tensor as the pickle describes it; nothing is checked yet.
#[derive(Debug)]
pub(super) struct Described {
    pub name: String,
    /// The storage's entry in the archive, `data/KEY`.
    pub storage: String,
    /// None of a storage's types that safetensors has too.
    pub dtype: Option<Dtype>,
    /// PyTorch's name for the type, such as `BFloat16Storage`.
    pub class: String,
    /// The first element, counted in the storage.
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

#[derive(Debug)]
enum Value<'a> {
    Int(i64),
    Text(&'a str),
    /// A module and a name in it.
    Global(&'a str, &'a str),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Call(Id, Id),
    Persistent(Id),
    /// Something that no tensor is made of.
    Other,
}

/// A value's place in the list of all.
type Id = u32;

/// Why a pickle is refused.
type Refusal = String;

/// The tensors of a state dict at the top of `pickle`. Values of it that are no tensors are left out.
///
/// # Errors
/// The pickle is damaged, has what no state dict has, or makes something else.
pub(super) fn state_dict(pickle: &[u8]) -> Result<Vec<Described>, Refusal> {
    let mut machine =
        Machine { bytes: pickle, at: 0, values: vec![], stack: vec![], marks: vec![], memo: HashMap::new() };
    let top = machine.run()?;
    let Value::Dict(entries) = machine.value(top) else { return Err("it holds no dict of tensors".into()) };
    let mut tensors = vec![];
    for &(name, value) in entries {
        if let Value::Text(name) = machine.value(name)
            && let Some(tensor) = machine.tensor(name, value)?
        {
            tensors.push(tensor);
        }
    }
    Ok(tensors)
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Lengths that the stack had.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, Refusal> {
        loop {
            let [op] = self.array()?;
            match op {
                b'.' => return self.pop(),
                0x80 => _ = self.array::<1>()?,                // PROTO
                0x95 => _ = self.array::<8>()?,                // FRAME
                b'(' => self.marks.push(self.stack.len()),     // MARK
                b'N' | 0x88 | 0x89 => self.push(Value::Other), // NONE, NEWTRUE, NEWFALSE
                b'G' => {
                    self.array::<8>()?; // BINFLOAT
                    self.push(Value::Other);
                }
                b'K' => {
                    let [x] = self.array()?; // BININT1
                    self.push(Value::Int(x.into()));
                }
                b'M' => {
                    let x = u16::from_le_bytes(self.array()?); // BININT2
                    self.push(Value::Int(x.into()));
                }
                b'J' => {
                    let x = i32::from_le_bytes(self.array()?); // BININT
                    self.push(Value::Int(x.into()));
                }
                0x8a => {
                    let [n] = self.array()?; // LONG1
                    let bytes = self.take(n.into())?;
                    self.push(long(bytes).map_or(Value::Other, Value::Int));
                }
                b'X' => {
                    let n = u32::from_le_bytes(self.array()?); // BINUNICODE
                    self.text(n as usize)?;
                }
                0x8c => {
                    let [n] = self.array()?; // SHORT_BINUNICODE
                    self.text(n.into())?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?); // GLOBAL
                    self.push(Value::Global(module, name));
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?); // STACK_GLOBAL
                    let (&Value::Text(module), &Value::Text(name)) = (self.value(module), self.value(name)) else {
                        return Err(damaged());
                    };
                    self.push(Value::Global(module, name));
                }
                b')' | b']' => self.push(Value::List(vec![])), // EMPTY_TUPLE, EMPTY_LIST
                b'}' => self.push(Value::Dict(vec![])),        // EMPTY_DICT
                b't' => {
                    let items = self.since_mark()?; // TUPLE
                    self.push(Value::List(items));
                }
                0x85..=0x87 => {
                    let from = self.stack.len().checked_sub(usize::from(op) - 0x84); // TUPLE1 to TUPLE3
                    let items = self.stack.split_off(from.ok_or_else(damaged)?);
                    self.push(Value::List(items));
                }
                b'a' | b'e' => {
                    let items = if op == b'a' { vec![self.pop()?] } else { self.since_mark()? }; // APPEND, APPENDS
                    let Value::List(list) = self.top()? else { return Err(damaged()) };
                    list.extend(items);
                }
                b's' | b'u' => {
                    let items = match op {
                        b's' => self.stack.split_off(self.stack.len().checked_sub(2).ok_or_else(damaged)?), // SETITEM
                        _ => self.since_mark()?,                                                            // SETITEMS
                    };
                    let Value::Dict(dict) = self.top()? else { return Err(damaged()) };
                    dict.extend(items.as_chunks::<2>().0.iter().map(|&[key, value]| (key, value)));
                }
                b'R' | 0x81 => {
                    let (arguments, callable) = (self.pop()?, self.pop()?); // REDUCE, NEWOBJ
                    self.push(match self.value(callable) {
                        Value::Global("collections", "OrderedDict") => Value::Dict(vec![]),
                        _ => Value::Call(callable, arguments),
                    });
                }
                b'b' => _ = self.pop()?, // BUILD: attributes of a dict, as versions of its layers
                b'Q' => {
                    let id = self.pop()?; // BINPERSID
                    self.push(Value::Persistent(id));
                }
                b'q' => {
                    let [key] = self.array()?; // BINPUT
                    self.remember(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?); // LONG_BINPUT
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?, // MEMOIZE
                b'h' => {
                    let [key] = self.array()?; // BINGET
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?); // LONG_BINGET
                    self.recall(key)?;
                }
                other => return Err(format!("its pickle has operation {other:#04x}, which no state dict has")),
            }
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Refusal> {
        let taken = self.bytes[self.at..].get(..n).ok_or_else(damaged)?;
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        Ok(*self.take(N)?.first_chunk().expect("as many"))
    }

    fn text(&mut self, n: usize) -> Result<(), Refusal> {
        let text = std::str::from_utf8(self.take(n)?).map_err(|_| damaged())?;
        self.push(Value::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, Refusal> {
        let end = self.bytes[self.at..].iter().position(|&b| b == b'\n').ok_or_else(damaged)?;
        let line = std::str::from_utf8(self.take(end)?).map_err(|_| damaged());
        self.at += 1;
        line
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, Refusal> {
        self.stack.pop().ok_or_else(damaged)
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, Refusal> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len()).ok_or_else(damaged)?;
        Ok(self.stack.split_off(mark))
    }

    fn top(&mut self) -> Result<&mut Value<'a>, Refusal> {
        let &top = self.stack.last().ok_or_else(damaged)?;
        Ok(&mut self.values[top as usize])
    }

    fn remember(&mut self, key: u32) -> Result<(), Refusal> {
        let &top = self.stack.last().ok_or_else(damaged)?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), Refusal> {
        self.stack.push(*self.memo.get(&key).ok_or_else(damaged)?);
        Ok(())
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    fn list(&self, id: Id) -> &[Id] {
        if let Value::List(items) = self.value(id) { items } else { &[] }
    }

    fn int(&self, id: Id) -> Result<u64, Refusal> {
        let &Value::Int(x) = self.value(id) else { return Err(damaged()) };
        u64::try_from(x).map_err(|_| damaged())
    }

    /// What a value describes if it is a tensor, or a parameter, which is a tensor in one more call.
    fn tensor(&self, name: &str, mut value: Id) -> Result<Option<Described>, Refusal> {
        loop {
            let &Value::Call(callable, arguments) = self.value(value) else { return Ok(None) };
            let arguments = self.list(arguments);
            match (self.value(callable), arguments) {
                (Value::Global("torch._utils", "_rebuild_parameter"), &[tensor, ..]) if tensor < value => {
                    value = tensor
                }
                (Value::Global("torch._utils", "_rebuild_tensor_v2"), &[storage, offset, shape, strides, ..]) => {
                    let ints = |id| self.list(id).iter().map(|&id| self.int(id)).collect::<Result<Vec<u64>, _>>();
                    let &Value::Persistent(id) = self.value(storage) else { return Err(damaged()) };
                    let &[_, class, key, ..] = self.list(id) else { return Err(damaged()) };
                    let (&Value::Global(_, class), &Value::Text(key)) = (self.value(class), self.value(key)) else {
                        return Err(damaged());
                    };
                    return Ok(Some(Described {
                        name: name.to_owned(),
                        storage: format!("data/{key}"),
                        dtype: dtype(class),
                        class: class.to_owned(),
                        offset: self.int(offset)?,
                        shape: ints(shape)?,
                        strides: ints(strides)?,
                    }));
                }
                _ => return Ok(None),
            }
        }
    }
}

fn damaged() -> Refusal {
    "its pickle is damaged".into()
}

/// A number in two's complement, if it is not too long.
fn long(bytes: &[u8]) -> Option<i64> {
    let sign = bytes.last().map_or(0, |&last| if last & 0x80 == 0 { 0 } else { 0xff });
    let mut word = [sign; 8];
    word.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(word))
}

fn dtype(class: &str) -> Option<Dtype> {
    Some(match class {
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}
