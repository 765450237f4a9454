//! The resize's two inner loops, in vector instructions where the processor has them.
//!
//! All arithmetic is on integers that wrap alike, so every path gives the same bits. The vector
//! path splits a coefficient into an upper and a lower part of 16 bits each; the sum of products
//! with both, the upper one shifted back, is the sum of products with the whole.

use super::{
    filter::{self, Filter},
    resize::ROWS_AT_ONCE,
    rgb::RgbImage,
};

/// A set of instructions that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instructions {
    Portable,
    /// Constructed only after the processor was asked.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Detected),
}

impl Instructions {
    /// The fastest that this processor has.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(detected) = avx2::Detected::on_this_processor() {
            return Self::Avx2(detected);
        }
        Self::Portable
    }

    /// Resizes rows of `image` from `first` on horizontally, as many as `output` has room for.
    /// Column `c` starts from `starts[c]`.
    pub fn horizontal(
        self,
        image: &RgbImage,
        first: usize,
        filter: &Filter,
        starts: &[[i32; 4]],
        output: &mut [u8],
    ) {
        let width = starts.len() * 3;
        match self {
            Self::Portable => {
                for (row, output) in output.chunks_exact_mut(width).enumerate() {
                    portable::horizontal(image.row(first + row), filter, starts, output);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(detected) => {
                let mut row = first;
                let mut blocks = output.chunks_exact_mut(width * ROWS_AT_ONCE);
                for block in &mut blocks {
                    detected.horizontal::<ROWS_AT_ONCE>(image, row, filter, starts, block);
                    row += ROWS_AT_ONCE;
                }
                for output in blocks.into_remainder().chunks_exact_mut(width) {
                    detected.horizontal::<1>(image, row, filter, starts, output);
                    row += 1;
                }
            }
        }
    }

    /// Output row `position` from its input rows, each sample starting from its entry in `starts`.
    pub fn vertical(
        self,
        rows: &[&[u8]],
        filter: &Filter,
        position: usize,
        starts: &[i32],
        output: &mut [u8],
    ) {
        match self {
            Self::Portable => portable::vertical(rows, filter, position, starts, output, 0),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(detected) => detected.vertical(rows, filter, position, starts, output),
        }
    }
}

mod portable {
    use super::{Filter, filter};

    pub fn horizontal(row: &[u8], filter: &Filter, starts: &[[i32; 4]], output: &mut [u8]) {
        for (column, (output, start)) in output.chunks_exact_mut(3).zip(starts).enumerate() {
            output.copy_from_slice(&pixel(row, filter, column, start));
        }
    }

    /// One output pixel from the row of which it is the part in `column`.
    pub fn pixel(row: &[u8], filter: &Filter, column: usize, start: &[i32; 4]) -> [u8; 3] {
        let taps = &filter.taps[column];
        let samples = &row[taps.first * 3..(taps.first + taps.count) * 3];
        let [mut red, mut green, mut blue, _] = *start;
        for (pixel, &coefficient) in samples.chunks_exact(3).zip(&filter.coefficients[filter.row(column)]) {
            red = red.wrapping_add(coefficient * i32::from(pixel[0]));
            green = green.wrapping_add(coefficient * i32::from(pixel[1]));
            blue = blue.wrapping_add(coefficient * i32::from(pixel[2]));
        }
        [red, green, blue].map(filter::sample)
    }

    /// Samples from `from` on.
    pub fn vertical(
        rows: &[&[u8]],
        filter: &Filter,
        position: usize,
        starts: &[i32],
        output: &mut [u8],
        from: usize,
    ) {
        const BLOCK: usize = 64;
        let coefficients = &filter.coefficients[filter.row(position)];
        for begin in (from..output.len()).step_by(BLOCK) {
            let end = output.len().min(begin + BLOCK);
            let mut sums = [0; BLOCK];
            let sums = &mut sums[..end - begin];
            sums.copy_from_slice(&starts[begin..end]);
            for (row, &coefficient) in rows.iter().zip(coefficients) {
                for (sum, &sample) in sums.iter_mut().zip(&row[begin..end]) {
                    *sum = sum.wrapping_add(coefficient * i32::from(sample));
                }
            }
            for (output, &sum) in output[begin..end].iter_mut().zip(&*sums) {
                *output = filter::sample(sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{
        super::filter::{GROUP, LOWER_BITS, PRECISION_BITS},
        Filter, RgbImage, portable,
    };
    use std::arch::x86_64::*;

    /// Proof that the processor has AVX2.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Detected(());

    impl Detected {
        pub fn on_this_processor() -> Option<Self> {
            is_x86_feature_detected!("avx2").then_some(Self(()))
        }

        pub fn horizontal<const ROWS: usize>(
            self,
            image: &RgbImage,
            first: usize,
            filter: &Filter,
            starts: &[[i32; 4]],
            output: &mut [u8],
        ) {
            // SAFETY: a `Detected` exists only where the processor has AVX2.
            unsafe { horizontal::<ROWS>(image, first, filter, starts, output) }
        }

        pub fn vertical(
            self,
            rows: &[&[u8]],
            filter: &Filter,
            position: usize,
            starts: &[i32],
            output: &mut [u8],
        ) {
            // SAFETY: as above.
            unsafe { vertical(rows, filter, position, starts, output) }
        }
    }

    /// `ROWS` rows at once; each step takes [`GROUP`] pixels of a row, two to a 128-bit lane.
    #[target_feature(enable = "avx2")]
    fn horizontal<const ROWS: usize>(
        image: &RgbImage,
        first: usize,
        filter: &Filter,
        starts: &[[i32; 4]],
        output: &mut [u8],
    ) {
        // Per lane: R0 R1 G0 G1 B0 B1 of two neighbouring pixels, widened to 16 bits.
        #[rustfmt::skip]
        let pixel_pairs = _mm256_setr_epi8(
            0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
            6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
        );
        // Per lane: that pair's two coefficients, once for each channel.
        #[rustfmt::skip]
        let coefficient_pairs = _mm256_setr_epi8(
            0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, -1, -1, -1, -1,
            4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, -1, -1, -1, -1,
        );
        let width = starts.len() * 3;
        let stride = image.width() as usize * 3;
        // From each row's start to the end of the image: loads may reach into the next row.
        let rows: [&[u8]; ROWS] = std::array::from_fn(|row| &image.pixels()[(first + row) * stride..]);
        let readable = rows[ROWS - 1].len();
        for (column, start) in starts.iter().enumerate() {
            let taps = &filter.taps[column];
            let coefficients = filter.row(column);
            let groups = taps.count.div_ceil(GROUP);
            let begin = taps.first * 3;
            // A load takes sixteen bytes for a group's twelve.
            if begin + groups * GROUP * 3 + 4 > readable {
                for (row, samples) in rows.iter().enumerate() {
                    let place = row * width + column * 3;
                    output[place..place + 3]
                        .copy_from_slice(&portable::pixel(samples, filter, column, start));
                }
                continue;
            }
            let upper = &filter.upper[coefficients.clone()][..groups * GROUP];
            let lower = &filter.lower[coefficients][..groups * GROUP];
            let mut upper_sums = [_mm256_setzero_si256(); ROWS];
            let mut lower_sums = [_mm256_setzero_si256(); ROWS];
            let groups = upper.as_chunks::<GROUP>().0.iter().zip(lower.as_chunks::<GROUP>().0);
            for (group, (upper, lower)) in groups.enumerate() {
                let upper = _mm256_shuffle_epi8(spread(upper), coefficient_pairs);
                let lower = _mm256_shuffle_epi8(spread(lower), coefficient_pairs);
                for row in 0..ROWS {
                    // SAFETY: even the shortest of `rows` is readable up to here, as checked above.
                    let samples =
                        unsafe { _mm_loadu_si128(rows[row].as_ptr().add(begin + group * GROUP * 3).cast()) };
                    let samples = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(samples), pixel_pairs);
                    upper_sums[row] = _mm256_add_epi32(upper_sums[row], _mm256_madd_epi16(samples, upper));
                    lower_sums[row] = _mm256_add_epi32(lower_sums[row], _mm256_madd_epi16(samples, lower));
                }
            }
            let [red, green, blue, idle] = *start;
            let start = _mm_setr_epi32(red, green, blue, idle);
            for row in 0..ROWS {
                let sums = joined(upper_sums[row], lower_sums[row]);
                let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
                let samples = _mm_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm_add_epi32(sums, start));
                let samples = _mm_packs_epi32(samples, samples);
                let [red, green, blue, _] =
                    _mm_cvtsi128_si32(_mm_packus_epi16(samples, samples)).to_le_bytes();
                let place = row * width + column * 3;
                output[place..place + 3].copy_from_slice(&[red, green, blue]);
            }
        }
    }

    /// Sixteen samples at once, two input rows to a step.
    #[target_feature(enable = "avx2")]
    fn vertical(rows: &[&[u8]], filter: &Filter, position: usize, starts: &[i32], output: &mut [u8]) {
        const BLOCK: usize = 16;
        let upper = &filter.upper[filter.row(position)];
        let lower = &filter.lower[filter.row(position)];
        let blocks = output.len() / BLOCK;
        for block in 0..blocks {
            let at = block * BLOCK;
            let zero = _mm256_setzero_si256();
            let (mut upper_left, mut upper_right, mut lower_left, mut lower_right) = (zero, zero, zero, zero);
            for (pair, rows) in rows.chunks(2).enumerate() {
                let one = load(rows[0], at);
                let other = rows.get(1).map_or(_mm_setzero_si128(), |row| load(row, at));
                let left = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(one, other));
                let right = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(one, other));
                let upper = two(upper[2 * pair], upper[2 * pair + 1]);
                let lower = two(lower[2 * pair], lower[2 * pair + 1]);
                upper_left = _mm256_add_epi32(upper_left, _mm256_madd_epi16(left, upper));
                upper_right = _mm256_add_epi32(upper_right, _mm256_madd_epi16(right, upper));
                lower_left = _mm256_add_epi32(lower_left, _mm256_madd_epi16(left, lower));
                lower_right = _mm256_add_epi32(lower_right, _mm256_madd_epi16(right, lower));
            }
            let starts = &starts[at..at + BLOCK];
            let left = _mm256_add_epi32(joined(upper_left, lower_left), eight(&starts[..8]));
            let right = _mm256_add_epi32(joined(upper_right, lower_right), eight(&starts[8..]));
            let left = _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(left);
            let right = _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(right);
            // Packing works within lanes; the permutation puts their quarters back in order.
            let samples = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(left, right));
            let samples =
                _mm_packus_epi16(_mm256_castsi256_si128(samples), _mm256_extracti128_si256::<1>(samples));
            store(&mut output[at..at + BLOCK], samples);
        }
        portable::vertical(rows, filter, position, starts, output, blocks * BLOCK);
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn joined(upper: __m256i, lower: __m256i) -> __m256i {
        _mm256_add_epi32(_mm256_slli_epi32::<{ LOWER_BITS as i32 }>(upper), lower)
    }

    /// Four coefficients, in both lanes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn spread(coefficients: &[i16; GROUP]) -> __m256i {
        let [a, b, c, d] = *coefficients;
        _mm256_broadcastq_epi64(_mm_setr_epi16(a, b, c, d, 0, 0, 0, 0))
    }

    /// The coefficients of two rows, side by side throughout.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn two(one: i16, other: i16) -> __m256i {
        _mm256_set1_epi32((i32::from(other) << 16) | i32::from(one as u16))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn eight(values: &[i32]) -> __m256i {
        assert!(values.len() >= 8);
        // SAFETY: eight values are there; the load needs no alignment.
        unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8], offset: usize) -> __m128i {
        let bytes = &bytes[offset..offset + 16];
        // SAFETY: sixteen bytes are there; the load needs no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(bytes: &mut [u8], samples: __m128i) {
        assert!(bytes.len() >= 16);
        // SAFETY: there is room for sixteen bytes; the store needs no alignment.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), samples) }
    }
}
