//! A file of the cache while it comes.

use super::RegistryError;
use crate::model::checkpoint::hexadecimal;
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// A file that grows at its end, with the digest of all that is in it.
pub(super) struct FileSink {
    path: PathBuf,
    file: File,
    hasher: Sha256,
}

impl FileSink {
    /// Opens what there is of the file, up to `limit` bytes; how many there are.
    pub(super) fn open(path: &Path, limit: u64) -> Result<(Self, u64), RegistryError> {
        let failed = |doing| RegistryError::cache(path, doing);
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        let mut file = options.open(path).map_err(failed("opening it"))?;
        if file.metadata().map_err(failed("looking at it"))?.len() > limit {
            file.set_len(0).map_err(failed("emptying it"))?;
        }
        let mut hasher = Sha256::new();
        let mut buffer = vec![0_u8; 1 << 20];
        let mut there = 0;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    there += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("reading it")(error)),
            }
        }
        Ok((Self { path: path.to_owned(), file, hasher }, there))
    }

    pub(super) fn append(&mut self, content: &[u8]) -> Result<(), RegistryError> {
        self.hasher.update(content);
        self.file.write_all(content).map_err(RegistryError::cache(&self.path, "writing it"))
    }

    pub(super) fn finish(self) -> Result<String, RegistryError> {
        self.file.sync_all().map_err(RegistryError::cache(&self.path, "writing it"))?;
        Ok(hexadecimal(&self.hasher.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::manifest::sha256;
    use std::fs;

    #[test]
    fn a_file_goes_on_where_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let content = [7_u8; 3000];
        let (mut sink, there) = FileSink::open(&path, 3000).unwrap();
        assert_eq!(there, 0);
        sink.append(&content[..1234]).unwrap();
        drop(sink);
        let (mut sink, there) = FileSink::open(&path, 3000).unwrap();
        assert_eq!(there, 1234);
        sink.append(&content[1234..]).unwrap();
        assert_eq!(sink.finish().unwrap(), sha256(&content));
        assert_eq!(fs::read(&path).unwrap(), content);
        let (_, there) = FileSink::open(&path, 2999).unwrap();
        assert_eq!(there, 0, "what is too long is something else");
    }
}
