//! Keys and values of the positions that a language model has seen, row by row.

use super::transfer::upload;
use tch::{Device, Kind, TchError, Tensor};

/// Preallocated keys and values of every layer, with a length per row.
///
/// Rows advance unevenly: each has its own length, and what lies behind it is never attended to.
pub struct KvCache {
    layers: Vec<Layer>,
    lengths: Vec<i64>,
    capacity: i64,
}

/// `[rows, kv_heads, capacity, head_dim]` each; zero where nothing was written yet, since a masked
/// position still enters the weighted sum with weight 0 and must not be NaN.
struct Layer {
    keys: Tensor,
    values: Tensor,
}

/// The dimensions of a cache that the model fixes.
#[derive(Clone, Copy, Debug)]
pub struct CacheShape {
    pub layers: usize,
    pub kv_heads: i64,
    pub head_dim: i64,
    pub kind: Kind,
    pub device: Device,
}

/// Where the next block of positions goes in each row.
pub struct Placement {
    /// First new position of each row; one entry where all rows agree.
    starts: Vec<i64>,
    count: i64,
    end: i64,
    /// `[rows, 1, count, 1]` positions, where rows disagree.
    index: Option<Tensor>,
}

impl Placement {
    /// That of `count` positions with nothing before them, the same in every row.
    pub fn first(count: i64) -> Self {
        Self { starts: vec![0], count, end: count, index: None }
    }

    /// First new position of each row; one entry where all rows agree.
    pub fn starts(&self) -> &[i64] {
        &self.starts
    }

    /// New positions of each row.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// Positions of the longest row once the block is in.
    pub fn end(&self) -> i64 {
        self.end
    }

    /// Every new position, `[rows or 1, count]`, i64, made on `device` where rows agree.
    pub fn positions(&self, device: Device) -> Result<Tensor, TchError> {
        match &self.index {
            Some(index) => index.f_view([-1, self.count]),
            None => {
                let start = self.starts[0];
                let positions = Tensor::f_arange_start(start, start + self.count, (Kind::Int64, device))?;
                positions.f_view([1, self.count])
            }
        }
    }
}

impl KvCache {
    /// An empty cache of `rows` rows that holds `capacity` positions before it has to grow.
    pub fn new(shape: CacheShape, rows: i64, capacity: i64) -> Result<Self, TchError> {
        let size = [rows, shape.kv_heads, capacity, shape.head_dim];
        let zeros = || Tensor::f_zeros(size, (shape.kind, shape.device));
        let layers = (0..shape.layers)
            .map(|_| Ok(Layer { keys: zeros()?, values: zeros()? }))
            .collect::<Result<_, TchError>>()?;
        Ok(Self { layers, lengths: vec![0; usize::try_from(rows).unwrap_or(0)], capacity })
    }

    /// A cache of `rows` rows, each of which begins with what the one row of `prefix` holds; with room
    /// for `capacity` positions in all.
    pub fn beginning_with(prefix: &Self, rows: i64, capacity: i64) -> Result<Self, TchError> {
        let length = prefix.lengths.first().copied().unwrap_or(0);
        let begin = |prefix: &Tensor| -> Result<Tensor, TchError> {
            let (_, kv_heads, _, head_dim) = prefix.size4()?;
            let size = [rows, kv_heads, capacity.max(length), head_dim];
            let cached = Tensor::f_zeros(size, (prefix.kind(), prefix.device()))?;
            // One row is copied to all.
            cached.f_narrow(2, 0, length)?.f_copy_(&prefix.f_narrow(2, 0, length)?)?;
            Ok(cached)
        };
        let layers = prefix
            .layers
            .iter()
            .map(|layer| Ok(Layer { keys: begin(&layer.keys)?, values: begin(&layer.values)? }))
            .collect::<Result<_, TchError>>()?;
        let lengths = vec![length; usize::try_from(rows).unwrap_or(0)];
        Ok(Self { layers, lengths, capacity: capacity.max(length) })
    }

    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Positions held by each row.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Makes room for `count` more positions in every row and says where they go.
    pub fn place(&mut self, count: i64) -> Result<Placement, TchError> {
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let end = longest + count;
        if end > self.capacity {
            self.grow(end.max(self.capacity + self.capacity / 2))?;
        }
        if self.lengths.iter().all(|&length| length == longest) {
            return Ok(Placement { starts: vec![longest], count, end, index: None });
        }
        let device = self.device();
        let starts = upload(&self.lengths, device)?.f_view([-1, 1, 1, 1])?;
        let offsets = Tensor::f_arange(count, (Kind::Int64, device))?.f_view([1, 1, count, 1])?;
        let index = Some(starts.f_add(&offsets)?);
        Ok(Placement { starts: self.lengths.clone(), count, end, index })
    }

    /// Writes one layer's new keys and values, `[rows, kv_heads, count, head_dim]`, and returns
    /// views of all of them, `[rows, kv_heads, end, head_dim]`.
    ///
    /// The lengths stay as they are until [`Self::advance`]: every layer writes the same positions.
    pub fn write(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
        placement: &Placement,
    ) -> Result<(Tensor, Tensor), TchError> {
        let layer = &mut self.layers[layer];
        let view = |cached: &mut Tensor, new: &Tensor| -> Result<Tensor, TchError> {
            match &placement.index {
                None => {
                    let start = placement.starts[0];
                    cached.f_narrow(2, start, placement.count)?.f_copy_(new)?;
                }
                Some(index) => {
                    let _ = cached.f_scatter_(2, &index.f_expand(new.size(), false)?, new)?;
                }
            }
            cached.f_narrow(2, 0, placement.end)
        };
        Ok((view(&mut layer.keys, keys)?, view(&mut layer.values, values)?))
    }

    /// Views of one layer's keys and values up to the longest row,
    /// `[rows, kv_heads, positions, head_dim]`; keys are rotated already.
    pub fn layer(&self, layer: usize) -> Result<(Tensor, Tensor), TchError> {
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let layer = &self.layers[layer];
        Ok((layer.keys.f_narrow(2, 0, longest)?, layer.values.f_narrow(2, 0, longest)?))
    }

    /// Counts a block that every layer has written.
    pub fn advance(&mut self, placement: &Placement) {
        for length in &mut self.lengths {
            *length += placement.count;
        }
    }

    /// Forgets a row's positions from `length` on.
    pub fn truncate(&mut self, row: usize, length: i64) {
        self.lengths[row] = self.lengths[row].min(length);
    }

    /// Keeps only the named rows, in that order.
    pub fn keep_rows(&mut self, rows: &[i64]) -> Result<(), TchError> {
        let index = upload(rows, self.device())?;
        for layer in &mut self.layers {
            layer.keys = layer.keys.f_index_select(0, &index)?;
            layer.values = layer.values.f_index_select(0, &index)?;
        }
        self.lengths =
            rows.iter().filter_map(|&row| self.lengths.get(usize::try_from(row).ok()?).copied()).collect();
        Ok(())
    }

    /// Keeps the rows at the places `kept`, whose owners stay in `owners` in the same order.
    pub fn leave(&mut self, owners: &mut Vec<usize>, kept: &[usize]) -> Result<(), TchError> {
        if kept.len() < owners.len() {
            let rows: Vec<i64> = kept.iter().map(|&row| row as i64).collect();
            self.keep_rows(&rows)?;
            *owners = kept.iter().map(|&row| owners[row]).collect();
        }
        Ok(())
    }

    fn grow(&mut self, capacity: i64) -> Result<(), TchError> {
        let old = self.capacity;
        for layer in &mut self.layers {
            for cached in [&mut layer.keys, &mut layer.values] {
                let mut size = cached.size();
                size[2] = capacity;
                let larger = Tensor::f_zeros(size, (cached.kind(), cached.device()))?;
                larger.f_narrow(2, 0, old)?.f_copy_(cached)?;
                *cached = larger;
            }
        }
        self.capacity = capacity;
        Ok(())
    }

    fn device(&self) -> Device {
        self.layers.first().map_or(Device::Cpu, |layer| layer.keys.device())
    }
}
