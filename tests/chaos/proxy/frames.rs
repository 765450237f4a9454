//! A proxy in front of Apache Kafka that knows where requests begin and end, and whose they are.
//!
//! A row installs a rule that sees every request and decides what becomes of it and of its reply.
//! Nothing is decoded here but the frame and the request's header; [`super::bodies`] has the few
//! replies that rows make up.

use super::gate::{Gate, Listener, Mode};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The keys of the requests that rows care for (Kafka protocol guide, "Api Keys").
pub mod api {
    pub const PRODUCE: i16 = 0;
    pub const JOIN_GROUP: i16 = 11;
    pub const HEARTBEAT: i16 = 12;
    pub const LEAVE_GROUP: i16 = 13;
    pub const INIT_PRODUCER_ID: i16 = 22;
    pub const ADD_OFFSETS_TO_TXN: i16 = 25;
    pub const END_TXN: i16 = 26;
    pub const TXN_OFFSET_COMMIT: i16 = 28;
}

/// Larger than any request of a worker.
const LONGEST_FRAME: usize = 64 << 20;
/// How long a request that is sent again by [`FrameProxy::release`] waits for its reply.
const RELEASE_PATIENCE: Duration = Duration::from_secs(15);

/// One request as it came from a client.
#[derive(Clone, Debug)]
pub struct Request {
    pub api: i16,
    pub version: i16,
    pub correlation: i32,
    /// Header and body, without the length in front.
    frame: Vec<u8>,
    body: usize,
}

impl Request {
    fn parse(frame: Vec<u8>) -> io::Result<Self> {
        let short = || io::Error::new(io::ErrorKind::InvalidData, "a request without a whole header");
        let number = |at: usize| frame.get(at..at + 2).map(|bytes| i16::from_be_bytes([bytes[0], bytes[1]]));
        let (api, version) = (number(0).ok_or_else(short)?, number(2).ok_or_else(short)?);
        let correlation = frame.get(4..8).and_then(|bytes| bytes.try_into().ok()).ok_or_else(short)?;
        let length = usize::try_from(number(8).ok_or_else(short)?).unwrap_or(0);
        frame.get(10..10 + length).ok_or_else(short)?;
        let correlation = i32::from_be_bytes(correlation);
        Ok(Self { api, version, correlation, frame, body: 10 + length })
    }

    /// What follows the header's client id: tagged fields in flexible versions, then the body.
    pub fn body(&self) -> &[u8] {
        &self.frame[self.body..]
    }
}

/// What is done to a reply's body.
pub type Change = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

/// What becomes of one request.
pub enum Act {
    Forward,
    /// Forwarded after this long; the connection's later requests wait behind it.
    Delay(Duration),
    /// The broker applies it, and the client is never told.
    DropReply,
    /// The broker applies it, and then the connection breaks.
    DropReplyAndCut,
    /// Kept until [`FrameProxy::release`]; the client waits in vain.
    Hold,
    /// Answered by the proxy with this body; the broker never sees it.
    Reply(Vec<u8>),
    /// Forwarded, and the reply's body changed on its way back.
    Rewrite(Change),
}

type Rule = dyn FnMut(&Request) -> Act + Send;

enum OnReply {
    Drop,
    Cut,
    Rewrite(Change),
}

struct Shared {
    gate: Arc<Gate>,
    upstream: Mutex<Option<SocketAddr>>,
    rule: Mutex<Option<Box<Rule>>>,
    held: Mutex<Vec<Request>>,
    fired: AtomicUsize,
}

/// The proxy; it ends with its handle.
pub struct FrameProxy {
    listener: Listener,
    shared: Arc<Shared>,
}

impl FrameProxy {
    /// Listens, for a broker that is yet to be named by [`Self::forward_to`].
    pub fn start() -> io::Result<Self> {
        let gate = Gate::new();
        let shared = Arc::new(Shared {
            gate: Arc::clone(&gate),
            upstream: Mutex::default(),
            rule: Mutex::default(),
            held: Mutex::default(),
            fired: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&shared);
        let listener = Listener::start(gate, move |client| serve(client, &serving))?;
        Ok(Self { listener, shared })
    }

    pub fn forward_to(&self, broker: SocketAddr) {
        *lock(&self.shared.upstream) = Some(broker);
    }

    /// Where workers connect to.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// From now on `rule` sees every request first; it replaces the rule before it.
    pub fn set_rule(&self, rule: impl FnMut(&Request) -> Act + Send + 'static) {
        *lock(&self.shared.rule) = Some(Box::new(rule));
    }

    pub fn clear_rule(&self) {
        *lock(&self.shared.rule) = None;
    }

    pub fn set_mode(&self, mode: Mode) {
        self.shared.gate.set(mode);
    }

    /// How many requests were treated otherwise than by [`Act::Forward`] since the last reset.
    pub fn fired(&self) -> usize {
        self.shared.fired.load(Ordering::Relaxed)
    }

    /// Sends what was held, oldest first, on a connection of the proxy's own, as a network does that
    /// delivers late. The bodies of the replies.
    pub fn release(&self) -> io::Result<Vec<Vec<u8>>> {
        let held = std::mem::take(&mut *lock(&self.shared.held));
        let mut broker = self.shared.connect()?;
        broker.set_read_timeout(Some(RELEASE_PATIENCE))?;
        let mut replies = Vec::new();
        for request in held {
            write_frame(&mut broker, &request.frame)?;
            let mut reply = read_frame(&mut broker)?;
            replies.push(reply.split_off(reply.len().min(4)));
        }
        Ok(replies)
    }

    /// As a fresh proxy: open, without a rule, nothing held, no count.
    pub fn reset(&self) {
        self.clear_rule();
        lock(&self.shared.held).clear();
        self.shared.fired.store(0, Ordering::Relaxed);
        self.set_mode(Mode::Open);
    }
}

impl Shared {
    fn connect(&self) -> io::Result<TcpStream> {
        let upstream = *lock(&self.upstream);
        let broker = TcpStream::connect(upstream.ok_or(io::ErrorKind::NotConnected)?)?;
        broker.set_nodelay(true)?;
        Ok(broker)
    }

    fn decide(&self, request: &Request) -> Act {
        let act = lock(&self.rule).as_mut().map_or(Act::Forward, |rule| rule(request));
        if !matches!(act, Act::Forward) {
            self.fired.fetch_add(1, Ordering::Relaxed);
        }
        act
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Pending = Arc<Mutex<HashMap<i32, OnReply>>>;

/// Requests on this thread, replies on another one, until either side ends.
fn serve(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let broker = shared.connect()?;
    let pending: Pending = Arc::default();
    let answers = Arc::new(Mutex::new(client.try_clone()?));
    let replies = thread::spawn({
        let (broker, pending) = (broker.try_clone()?, Arc::clone(&pending));
        let (answers, gate) = (Arc::clone(&answers), Arc::clone(&shared.gate));
        move || {
            let _ended = pass_replies(&broker, &answers, &pending, &gate);
            end(&broker);
            end(&lock(&answers));
        }
    });
    let _ended = pass_requests(&client, &broker, &answers, &pending, shared);
    end(&client);
    end(&broker);
    let _ = replies.join();
    Ok(())
}

fn pass_requests(
    mut client: &TcpStream,
    mut broker: &TcpStream,
    answers: &Mutex<TcpStream>,
    pending: &Pending,
    shared: &Shared,
) -> io::Result<()> {
    loop {
        let request = Request::parse(read_frame(&mut client)?)?;
        let act = shared.decide(&request);
        if let Act::Delay(delay) = &act {
            thread::sleep(*delay);
        }
        if !shared.gate.pass() {
            return Ok(());
        }
        let on_reply = match act {
            Act::Forward | Act::Delay(_) => None,
            Act::DropReply => Some(OnReply::Drop),
            Act::DropReplyAndCut => Some(OnReply::Cut),
            Act::Rewrite(change) => Some(OnReply::Rewrite(change)),
            Act::Hold => {
                lock(&shared.held).push(request);
                continue;
            }
            Act::Reply(body) => {
                let mut reply = request.correlation.to_be_bytes().to_vec();
                reply.extend(body);
                write_frame(&mut *lock(answers), &reply)?;
                continue;
            }
        };
        if let Some(on_reply) = on_reply {
            lock(pending).insert(request.correlation, on_reply);
        }
        write_frame(&mut broker, &request.frame)?;
    }
}

fn pass_replies(
    mut broker: &TcpStream,
    answers: &Mutex<TcpStream>,
    pending: &Pending,
    gate: &Gate,
) -> io::Result<()> {
    loop {
        let mut reply = read_frame(&mut broker)?;
        if !gate.pass() {
            return Ok(());
        }
        let correlation = reply.first_chunk::<4>().map(|bytes| i32::from_be_bytes(*bytes));
        match correlation.and_then(|correlation| lock(pending).remove(&correlation)) {
            Some(OnReply::Drop) => continue,
            Some(OnReply::Cut) => return Ok(()),
            Some(OnReply::Rewrite(change)) => {
                let mut body = reply.split_off(4);
                change(&mut body);
                reply.extend(body);
            }
            None => {}
        }
        write_frame(&mut *lock(answers), &reply)?;
    }
}

fn end(socket: &TcpStream) {
    // The other side may have closed it already.
    let _ = socket.shutdown(std::net::Shutdown::Both);
}

fn read_frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LONGEST_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a Kafka frame"));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

fn write_frame(stream: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    let mut whole = Vec::with_capacity(frame.len() + 4);
    whole.extend((frame.len() as u32).to_be_bytes());
    whole.extend(frame);
    stream.write_all(&whole)
}
