//! The answers of greedy decoding, mostly at the cost of one pass.

use super::{
    Generated, GreedyOptions,
    choice::{Choice, choose},
    drafts::Drafts,
    embedded::EmbeddedPrompt,
    generate::USUAL_ANSWER,
};
use crate::{
    model::{
        family::{Block, Family},
        kv_cache::KvCache,
        transfer::upload,
    },
    score::DraftCounts,
};
use tch::{TchError, Tensor};

/// Decodes batch after batch, and learns from each what the next one's answers may be.
///
/// The most frequent answer so far is put behind the prompt as a draft, and one pass says for each of
/// its tokens, end token included, whether it is the likeliest after those before it. The tokens up to
/// the first that isn't, and the likeliest there instead, are what greedy decoding gives (Stern et
/// al. 2018, "Blockwise Parallel Decoding", with a memory for a model). A row whose answer isn't
/// over by then keeps its keys and values up to there and goes on a token a pass, or with the rest of
/// another answer wherever one began as this one does.
pub struct Verifier {
    /// Keys and values of the text before the image, computed once.
    prefix: KvCache,
    drafts: Drafts,
    /// The draft that the last batch began with, so that its embeddings need not be made again.
    lead: Option<Lead>,
    counts: DraftCounts,
}

/// A draft without its last token, which is only ever predicted.
struct Lead {
    guess: Vec<i64>,
    /// `[1, positions, hidden]`; none for a guess of no tokens.
    embeddings: Option<Tensor>,
}

/// Rows that are still being answered.
struct Rows {
    cache: KvCache,
    /// Which answer each row gives.
    active: Vec<usize>,
    /// What follows each row's sure tokens in the pass.
    guesses: Vec<Vec<i64>>,
}

impl Verifier {
    /// For one model and one prompt.
    pub fn new(family: &dyn Family, prompt: &EmbeddedPrompt) -> Result<Self, TchError> {
        Ok(Self {
            prefix: prompt.prefix(family)?,
            drafts: Drafts::default(),
            lead: None,
            counts: DraftCounts::default(),
        })
    }

    /// What may come, as far as it is known.
    pub fn drafts(&self) -> &Drafts {
        &self.drafts
    }

    /// Counts an answer as if it had been given.
    pub fn learn(&mut self, answer: &[i64]) {
        self.drafts.learn(answer);
    }

    /// How its drafts have fared.
    pub fn counts(&self) -> DraftCounts {
        self.counts
    }

    /// Answers to images `[images, image_positions, hidden]`, which are those of
    /// [`generate()`](super::generate()). Nothing is learnt from a batch that
    /// ends in an error.
    pub fn answer(
        &mut self,
        family: &dyn Family,
        prompt: &EmbeddedPrompt,
        images: &Tensor,
        options: &GreedyOptions,
    ) -> Result<Vec<Generated>, TchError> {
        let count = usize::try_from(images.size()[0]).unwrap_or(0);
        let mut answers = vec![Generated::default(); count];
        if count == 0 || options.max_new_tokens == 0 {
            return Ok(answers);
        }
        let positions = prompt.text_positions() + images.size()[1];
        let lead = self.lead(family, positions, options)?;
        let (mut rows, mut hidden) = self.first_pass(family, prompt, images, lead.as_ref())?;
        loop {
            let choices = choose(family, &hidden, options)?;
            rows.take(&choices, &mut answers, options)?;
            if rows.active.is_empty() {
                break;
            }
            hidden = rows.next_pass(family, &self.drafts, &answers, options)?;
        }
        for answer in &mut answers {
            answer.verified = lead.is_some() && answer.forwards == 1 && !answer.broken;
        }
        self.note(&answers, lead.is_some(), options);
        self.lead = lead;
        Ok(answers)
    }

    /// The draft to begin with, where the model allows one behind so many positions.
    fn lead(
        &mut self,
        family: &dyn Family,
        positions: i64,
        options: &GreedyOptions,
    ) -> Result<Option<Lead>, TchError> {
        let Some(draft) = self.drafts.after(&[]) else {
            return Ok(None);
        };
        let guess = &draft[..draft.len() - 1];
        let end = positions + guess.len() as i64;
        if draft.len() > options.max_new_tokens || end > family.blockwise_positions() {
            return Ok(None);
        }
        if let Some(lead) = self.lead.take_if(|lead| lead.guess == guess) {
            return Ok(Some(lead));
        }
        let embeddings = match guess {
            [] => None,
            guess => Some(family.embed(&upload(guess, family.device())?.f_view([1, -1])?)?),
        };
        Ok(Some(Lead { guess: guess.to_vec(), embeddings }))
    }

    /// The prompt from the image on, and the draft behind it; gives the hidden states from the
    /// prompt's last position on.
    fn first_pass(
        &self,
        family: &dyn Family,
        prompt: &EmbeddedPrompt,
        images: &Tensor,
        lead: Option<&Lead>,
    ) -> Result<(Rows, Tensor), TchError> {
        let (count, image_positions, _) = images.size3()?;
        let draft = lead.and_then(|lead| lead.embeddings.as_ref());
        let guess = lead.map(|lead| lead.guess.clone()).unwrap_or_default();
        let positions = prompt.text_positions() + image_positions;
        // Where positions mean something else once there are many, the prompt goes in as a whole.
        let shares_prefix = positions <= family.blockwise_positions();
        let (embeddings, image, mut cache) = if shares_prefix {
            let capacity = positions + guess.len() as i64 + USUAL_ANSWER;
            let cache = KvCache::beginning_with(&self.prefix, count, capacity)?;
            (prompt.from_image_on(images, draft)?, 0..image_positions, cache)
        } else {
            let (embeddings, image) = prompt.around(images)?;
            (embeddings, image, family.new_cache(count, positions + USUAL_ANSWER)?)
        };
        let end = embeddings.size()[1];
        let block = Block::new(&embeddings, image).reading(end - guess.len() as i64 - 1..end);
        let hidden = family.forward(&block, &mut cache)?;
        let active: Vec<usize> = (0..cache.rows()).collect();
        let guesses = vec![guess; active.len()];
        Ok((Rows { cache, active, guesses }, hidden))
    }

    /// Counts and learns from a batch that is done.
    fn note(&mut self, answers: &[Generated], drafted: bool, options: &GreedyOptions) {
        for answer in answers {
            if drafted && !answer.broken {
                let count =
                    if answer.verified { &mut self.counts.accepted } else { &mut self.counts.rejected };
                *count += 1;
            }
            if answer.is_complete(options) {
                self.drafts.learn(&answer.tokens);
            }
        }
    }
}

impl Rows {
    /// Takes what a pass says: of each row the guesses that were right, and one token more. Rows that
    /// are done leave; the others forget the positions of wrong guesses.
    fn take(
        &mut self,
        choices: &[Vec<Choice>],
        answers: &mut [Generated],
        options: &GreedyOptions,
    ) -> Result<(), TchError> {
        let widest = self.widest();
        let mut kept = Vec::with_capacity(self.active.len());
        for (row, choices) in choices.iter().enumerate() {
            let answer = &mut answers[self.active[row]];
            answer.forwards += 1;
            let guess = &self.guesses[row];
            let mut right = 0;
            let mut goes_on = true;
            // Behind a row's own guess lies filling, which says nothing.
            for choice in choices.iter().take(guess.len() + 1) {
                goes_on = answer.take(choice, options);
                if !goes_on || guess.get(right) != Some(&choice.token) {
                    break;
                }
                right += 1;
            }
            if goes_on {
                let length = self.cache.lengths()[row];
                self.cache.truncate(row, length - (widest - right) as i64);
                kept.push(row);
            }
        }
        self.cache.leave(&mut self.active, &kept)
    }

    /// Appends each row's last token, with the rest of a draft where one fits; gives the hidden states
    /// behind them.
    fn next_pass(
        &mut self,
        family: &dyn Family,
        drafts: &Drafts,
        answers: &[Generated],
        options: &GreedyOptions,
    ) -> Result<Tensor, TchError> {
        let longest = self.cache.lengths().iter().copied().max().unwrap_or(0);
        let room = usize::try_from(family.blockwise_positions() - longest - 1).unwrap_or(0);
        self.guesses.clear();
        for &row in &self.active {
            let tokens = &answers[row].tokens;
            let rest = drafts.after(tokens).unwrap_or_default();
            let allowed = room.min(options.max_new_tokens.saturating_sub(tokens.len() + 1));
            self.guesses.push(rest[..rest.len().saturating_sub(1).min(allowed)].to_vec());
        }
        let width = 1 + self.widest();
        let mut ids = Vec::with_capacity(self.active.len() * width);
        for (&row, guess) in self.active.iter().zip(&self.guesses) {
            let last = answers[row].tokens.last().copied().unwrap_or(0);
            ids.push(last);
            ids.extend(guess);
            ids.extend(std::iter::repeat_n(last, width - 1 - guess.len()));
        }
        let ids = upload(&ids, family.device())?.f_view([-1, width as i64])?;
        family.forward(&Block::text(&family.embed(&ids)?), &mut self.cache)
    }

    fn widest(&self) -> usize {
        self.guesses.iter().map(Vec::len).max().unwrap_or(0)
    }
}
