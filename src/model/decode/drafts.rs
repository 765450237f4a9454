//! Answers that may be given again, learnt from those that were.

/// As many are kept: what is rarer than this is seldom worth a guess.
const KEPT: usize = 8;

/// Longer answers are not learnt: a wrong guess costs its length.
const LONGEST: usize = 128;

/// The answers seen most often, in bounded memory.
///
/// Counts are those of Metwally et al. 2005 (Space-Saving): an answer that is not kept takes the
/// place of the rarest and its count, plus one. So whatever makes up more than one in `KEPT` of all
/// answers is always kept, and an answer that has gone out of use does not stay for ever.
#[derive(Clone, Debug, Default)]
pub struct Drafts {
    /// The most frequent first; of equals the older.
    kept: Vec<Draft>,
}

#[derive(Clone, Debug)]
struct Draft {
    /// The end token included.
    tokens: Vec<i64>,
    seen: u64,
}

impl Drafts {
    /// Counts one whole answer, its end token included.
    pub fn learn(&mut self, answer: &[i64]) {
        if answer.is_empty() || answer.len() > LONGEST {
            return;
        }
        let known = self.kept.iter().position(|draft| draft.tokens == answer);
        let place = match known {
            Some(place) => place,
            None if self.kept.len() < KEPT => {
                self.kept.push(Draft { tokens: answer.to_vec(), seen: 0 });
                self.kept.len() - 1
            }
            None => {
                let rarest = self.kept.len() - 1;
                self.kept[rarest].tokens = answer.to_vec();
                rarest
            }
        };
        self.kept[place].seen += 1;
        // Stable, so that what was there first stays before what has only drawn level.
        self.kept.sort_by_key(|draft| std::cmp::Reverse(draft.seen));
    }

    /// What follows `tokens` in the most frequent answer that begins with them and goes on. With no
    /// tokens, that is the most frequent answer itself.
    pub fn after(&self, tokens: &[i64]) -> Option<&[i64]> {
        let fits = |draft: &&Draft| draft.tokens.len() > tokens.len() && draft.tokens.starts_with(tokens);
        self.kept.iter().find(fits).map(|draft| &draft.tokens[tokens.len()..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_most_frequent_answer_that_fits_is_offered() {
        let mut drafts = Drafts::default();
        assert_eq!(drafts.after(&[]), None);
        for answer in [&[1, 2, 3, 0][..], &[1, 5, 0], &[1, 5, 0], &[7, 0]] {
            drafts.learn(answer);
        }
        assert_eq!(drafts.after(&[]), Some(&[1, 5, 0][..]));
        assert_eq!(drafts.after(&[1]), Some(&[5, 0][..]));
        assert_eq!(drafts.after(&[1, 2]), Some(&[3, 0][..]));
        assert_eq!(drafts.after(&[7, 0]), None);
        assert_eq!(drafts.after(&[8]), None);
    }

    #[test]
    fn what_has_drawn_level_does_not_take_the_lead() {
        let mut drafts = Drafts::default();
        for answer in [[1, 0], [2, 0], [2, 0], [1, 0]] {
            drafts.learn(&answer);
        }
        assert_eq!(drafts.after(&[]), Some(&[2, 0][..]));
        drafts.learn(&[1, 0]);
        assert_eq!(drafts.after(&[]), Some(&[1, 0][..]));
    }

    #[test]
    fn what_is_too_long_or_empty_is_not_learnt() {
        let mut drafts = Drafts::default();
        drafts.learn(&[]);
        drafts.learn(&[1; LONGEST + 1]);
        assert_eq!(drafts.after(&[]), None);
        drafts.learn(&[1; LONGEST]);
        assert_eq!(drafts.after(&[]).map(<[i64]>::len), Some(LONGEST));
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_a_frequent_answer_is_never_lost(
            others in proptest::collection::vec(2_i64..1000, 0..300),
            every in 2_usize..KEPT,
        ) {
            let mut drafts = Drafts::default();
            let (mut seen, mut frequent) = (0, 0);
            for (turn, other) in others.iter().enumerate() {
                if turn % every == 0 {
                    drafts.learn(&[1, 0]);
                    frequent += 1;
                }
                drafts.learn(&[*other, 0]);
                seen = turn + 1 + frequent;
                prop_assert!(drafts.kept.len() <= KEPT);
                prop_assert!(drafts.kept.is_sorted_by(|one, next| one.seen >= next.seen));
            }
            prop_assert_eq!(drafts.kept.iter().map(|draft| draft.seen).sum::<u64>(), seen as u64);
            if frequent * KEPT > seen {
                prop_assert!(drafts.kept.iter().any(|draft| draft.tokens == [1, 0]));
            }
        }
    }
}
