//! A proxy that knows nothing but bytes, in front of Postgres or S3.

use super::gate::{Gate, Listener, Mode};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

struct Shared {
    gate: Arc<Gate>,
    target: SocketAddr,
    /// Bytes that a new connection's answers may have before it is cut.
    cut_after: AtomicUsize,
    fired: AtomicUsize,
}

/// The proxy; it ends with its handle.
pub struct TcpProxy {
    listener: Listener,
    shared: Arc<Shared>,
}

impl TcpProxy {
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        let gate = Gate::new();
        let shared = Arc::new(Shared {
            gate: Arc::clone(&gate),
            target,
            cut_after: AtomicUsize::new(usize::MAX),
            fired: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&shared);
        let listener = Listener::start(gate, move |client| serve(&client, &serving))?;
        Ok(Self { listener, shared })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    pub fn set_mode(&self, mode: Mode) {
        if mode != Mode::Open {
            self.shared.fired.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.gate.set(mode);
    }

    /// Closes every connection there is.
    pub fn cut(&self) {
        let cut = self.shared.gate.cut();
        self.shared.fired.fetch_add(cut, Ordering::Relaxed);
    }

    /// Connections made from now on break once the server has sent this many bytes; `None`: they don't.
    pub fn cut_after(&self, bytes: Option<usize>) {
        self.shared.cut_after.store(bytes.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Connections cut, and modes other than open set.
    pub fn fired(&self) -> usize {
        self.shared.fired.load(Ordering::Relaxed)
    }
}

fn serve(client: &TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect(shared.target)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let answers = thread::spawn({
        let (client, server, shared) = (client.try_clone()?, server.try_clone()?, Arc::clone(shared));
        let limit = shared.cut_after.load(Ordering::Relaxed);
        move || {
            let _broken = pump(&server, &client, &shared, limit);
            end(&server, &client);
        }
    });
    let _broken = pump(client, &server, shared, usize::MAX);
    end(client, &server);
    let _ = answers.join();
    Ok(())
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared, limit: usize) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    let mut passed = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 || !shared.gate.pass() {
            return Ok(());
        }
        let allowed = read.min(limit - passed);
        to.write_all(&buffer[..allowed])?;
        passed += allowed;
        if passed == limit {
            shared.fired.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
    }
}

fn end(one: &TcpStream, other: &TcpStream) {
    for socket in [one, other] {
        // The other side may have closed it already.
        let _ = socket.shutdown(Shutdown::Both);
    }
}
