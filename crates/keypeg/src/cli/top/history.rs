//! The history of a pool as one line of blocks.
//!
//! Pure: seconds in, text out.

/// The heights of a block, lowest first.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The same for a terminal without UTF-8.
const ASCII: [char; 8] = ['.', ':', '-', '=', '+', '*', '%', '#'];

/// How the seconds of one column become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// The largest one: a state between two instants is not lost.
    Max,
    /// The mean per second.
    Mean,
}

/// Returns the last seconds as `width` columns. Zero is the lowest block, the largest number the
/// highest, and a column without a record is blank.
pub(super) fn line(seconds: &[Option<u64>], width: usize, merge: Merge, is_utf8: bool) -> String {
    let columns = columns(seconds, width, merge);
    let max = columns.iter().copied().flatten().max().unwrap_or(0);
    let blocks = if is_utf8 { BLOCKS } else { ASCII };
    columns
        .into_iter()
        .map(|number| match number {
            None => ' ',
            Some(0) => blocks[0],
            Some(number) => {
                let top = blocks.len() as u128 - 1;
                let height = (u128::from(number) * top).div_ceil(u128::from(max));
                blocks[usize::try_from(height).unwrap_or(0)]
            }
        })
        .collect()
}

/// Merges seconds into columns, the same number for each. The first column can have fewer.
fn columns(seconds: &[Option<u64>], width: usize, merge: Merge) -> Vec<Option<u64>> {
    if width == 0 || seconds.is_empty() {
        return Vec::new();
    }
    let each = seconds.len().div_ceil(width);
    // From the end, so that the last column is the present one.
    let mut columns: Vec<_> = seconds
        .rchunks(each)
        .map(|part| {
            let known = part.iter().copied().flatten();
            match merge {
                Merge::Max => known.max(),
                Merge::Mean => {
                    let count = known.clone().count() as u64;
                    (count > 0).then(|| known.sum::<u64>().div_ceil(count))
                }
            }
        })
        .collect();
    columns.reverse();
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(numbers: &[u64]) -> Vec<Option<u64>> {
        numbers.iter().copied().map(Some).collect()
    }

    #[test]
    fn a_line_has_the_shape_of_its_numbers() {
        for (seconds, width, drawn) in [
            (some(&[0, 1, 2, 3, 4, 5, 6, 7]), 8, "▁▂▃▄▅▆▇█"),
            (some(&[0, 0, 0]), 8, "▁▁▁"),
            (some(&[9]), 8, "█"),
            // One lease of a million keys shows.
            (some(&[0, 1, 1_000_000]), 3, "▁▂█"),
            (vec![Some(1), None, Some(1)], 3, "█ █"),
            (some(&[1, 0, 0, 0, 0, 7, 0]), 3, "▂▁█"),
            (some(&[1; 900]), 0, ""),
            (Vec::new(), 3, ""),
            (some(&[u64::MAX, 1]), 2, "█▂"),
        ] {
            assert_eq!(line(&seconds, width, Merge::Max, true), drawn, "{seconds:?} {width}");
        }
        assert_eq!(line(&some(&[0, 1, 7]), 3, Merge::Max, false), ".:#");
        // The mean of 0 and 8 is 4, and that of 8 alone is 8.
        assert_eq!(line(&[Some(0), Some(8), None, Some(8)], 2, Merge::Mean, true), "▅█");
        assert_eq!(line(&some(&[1; 900]), 60, Merge::Mean, true).chars().count(), 60);
    }
}
