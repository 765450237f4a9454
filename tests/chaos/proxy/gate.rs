//! Whether a proxy lets anything through, and the sockets that it has to close when it does not.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How a proxy treats its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes.
    Open,
    /// Every connection is closed, new ones too.
    Refusing,
    /// Connections stay, and nothing comes through. What was sent meanwhile arrives when the proxy
    /// opens again, as TCP has it after a partition.
    Silent,
}

struct State {
    mode: Mode,
    sockets: HashMap<u64, TcpStream>,
    next: u64,
}

pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    closed: AtomicBool,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        let state = State { mode: Mode::Open, sockets: HashMap::new(), next: 0 };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), closed: AtomicBool::new(false) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, mode: Mode) {
        let mut state = self.lock();
        state.mode = mode;
        if mode == Mode::Refusing {
            close(&mut state);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Closes what is connected; new connections follow the mode.
    pub fn cut(&self) -> usize {
        close(&mut self.lock())
    }

    /// Waits while nothing may pass; false once the connection is to end.
    pub fn pass(&self) -> bool {
        let mut state = self.lock();
        while state.mode == Mode::Silent && !self.closed.load(Ordering::Relaxed) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.mode == Mode::Open && !self.closed.load(Ordering::Relaxed)
    }

    fn keep(&self, socket: &TcpStream) -> io::Result<u64> {
        let socket = socket.try_clone()?;
        let mut state = self.lock();
        state.next += 1;
        let number = state.next;
        state.sockets.insert(number, socket);
        Ok(number)
    }

    fn forget(&self, number: u64) {
        self.lock().sockets.remove(&number);
    }
}

fn close(state: &mut State) -> usize {
    let sockets: Vec<_> = state.sockets.drain().collect();
    for (_, socket) in &sockets {
        // The other side may have closed it already.
        let _ = socket.shutdown(Shutdown::Both);
    }
    sockets.len()
}

/// A loopback listener whose connections each get a thread running `serve`, until it is dropped.
pub(super) struct Listener {
    address: SocketAddr,
    gate: Arc<Gate>,
}

impl Listener {
    pub fn start(
        gate: Arc<Gate>,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let serve = Arc::new(serve);
        thread::spawn({
            let gate = Arc::clone(&gate);
            move || {
                for client in listener.incoming() {
                    if gate.closed.load(Ordering::Relaxed) {
                        return;
                    }
                    let Ok(client) = client else {
                        // Out of file descriptors: let connections end.
                        thread::sleep(Duration::from_millis(20));
                        continue;
                    };
                    let (gate, serve) = (Arc::clone(&gate), Arc::clone(&serve));
                    thread::spawn(move || {
                        if let Ok(number) = gate.keep(&client) {
                            if gate.pass() {
                                // A broken connection is what proxies are here for.
                                let _ = serve(client);
                            }
                            gate.forget(number);
                        }
                    });
                }
            }
        });
        Ok(Self { address, gate })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.gate.closed.store(true, Ordering::Relaxed);
        self.gate.set(Mode::Refusing);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}
