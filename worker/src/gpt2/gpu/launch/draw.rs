//! Starts the kernels that draw, and reads what they answer: once a step, and once more where rows are left to the sampler.

use cubecl::bytes::Bytes;
use cubecl::ir::features::AtomicUsage;
use cubecl::ir::{ElemType, FloatKind, StorageType, Type, UIntKind};
use cubecl::prelude::*;

use super::super::draw::{
    self, CANDIDATES, GREEDY, NUCLEUS, OF_ASK, OF_BINS, OF_PART, OF_SHORTLIST, OF_TOKEN, PARTS, TOP, UNITS, WHOLE,
};
use super::{Counts, Numbers, Site, count_launch, grid, over, units};
use crate::gpt2::{Draw, Drawn, Likely, Method};

/// Numbers of a row with likely tokens.
const OF_LIKELY: usize = OF_TOKEN + 4 + 2 * TOP;
/// Bytes that the units of a cube share: the greatest, counts, sums, candidates.
const SHARED: usize = UNITS * 16 + CANDIDATES * 16 + 64;

/// Whether a device has what the kernels need: f64, counters that many units add to, and cubes and memory that are large
/// enough.
pub(in super::super) fn draws<R: Runtime>(site: &Site<R>) -> bool {
    let properties = site.client.properties();
    let hardware = &properties.hardware;
    let counter = Type::new(StorageType::Atomic(ElemType::UInt(UIntKind::U32)));
    // Every card of NVIDIA's has f64, though CubeCL does not list it for CUDA.
    let wide = R::name(&site.client) == "cuda" || properties.supports_type(ElemType::Float(FloatKind::F64));
    wide && properties.atomic_type_usage(counter).contains(AtomicUsage::Add)
        && hardware.max_units_per_cube as usize >= UNITS
        && hardware.max_shared_memory_size >= SHARED
}

/// See [`super::super::super::Gpt2Backend::draw`]. The edits are of tokens that `logits [rows, vocabulary]` have.
pub(in super::super) fn draw<R: Runtime>(logits: &Numbers<R>, draws: &[Draw]) -> Result<Vec<Drawn>, String> {
    let [rows, width] = logits.shape();
    assert_eq!(rows, draws.len(), "as many draws as rows");
    let asks: Vec<_> = draws.iter().map(|draw| ask(draw, width)).collect();
    // Whose draw is not for the device is asked for something easy, which nobody reads.
    let words: Vec<_> = asks.iter().flat_map(|ask| ask.unwrap_or([GREEDY; OF_ASK])).collect();
    let tells = draws.iter().any(|draw| draw.top.is_some());
    let answers = logits.like([rows, if tells { OF_LIKELY } else { OF_TOKEN }]);
    let edits = Edits::new(logits, draws);
    if let Some(edits) = &edits {
        edits.make(logits);
    }
    let all = Rows::new(logits, words);
    all.pick(&answers);
    if let Some(edits) = &edits
        && tells
    {
        edits.take_back(logits);
    }
    if tells {
        all.tell(&answers);
    }
    let numbers = answers.read_words()?;
    let answers = numbers.chunks_exact(answers.width).zip(draws).zip(&asks);
    let mut outcomes: Vec<_> = answers
        .map(|((answer, draw), ask)| ask.and_then(|_| token(answer, draw, width)))
        .collect();
    let left: Vec<usize> = (0..rows).filter(|row| outcomes[*row].is_none()).collect();
    if !left.is_empty() {
        if let Some(edits) = &edits
            && !tells
        {
            edits.take_back(logits);
        }
        Counts::add(|started| started.draws_left += left.len() as u64);
        let whole = logits.rows(&left).read()?;
        for (row, logits) in left.into_iter().zip(whole.chunks_exact(width)) {
            outcomes[row] = Some(Drawn::Logits(logits.to_vec()));
        }
    }
    Ok(outcomes
        .into_iter()
        .map(|outcome| outcome.expect("drawn or left"))
        .collect())
}

/// A draw as the kernels read it, or `None` if it is not one for them.
fn ask(draw: &Draw, width: usize) -> Option<[u32; OF_ASK]> {
    let mut ask = [0; OF_ASK];
    ask[0] = GREEDY;
    ask[8] = match draw.top {
        Some(top) if top > TOP => return None,
        top => top.map_or(0, |top| top as u32 + 1),
    };
    let Method::Random {
        temperature,
        top_k,
        top_p,
        min_p,
    } = draw.method
    else {
        return Some(ask);
    };
    let kept = top_k.unwrap_or(width).clamp(1, width);
    let candidates = kept.min(CANDIDATES);
    ask[0] = match (kept == width, top_p >= 1.0, kept == candidates) {
        (true, true, _) => WHOLE,
        // The weight of all tokens is the device's to sum up; that of more than it sorts is not.
        (true, false, _) | (false, _, true) => NUCLEUS,
        (false, _, false) => return None,
    };
    ask[1] = candidates as u32;
    ask[2] = u32::from(kept == candidates);
    for (place, number) in [(3, temperature), (4, top_p), (5, min_p)] {
        ask[place] = (number as f32).to_bits();
    }
    // All 53 digits.
    let high = (draw.uniform * 2_f64.powi(32)).floor();
    ask[6] = high as u32;
    ask[7] = ((draw.uniform * 2_f64.powi(32) - high) * 2_f64.powi(21)) as u32;
    Some(ask)
}

/// What a row answered, or `None` if it is in doubt.
fn token(answer: &[u32], draw: &Draw, width: usize) -> Option<Drawn> {
    let [id, 1, ..] = *answer else { return None };
    let likely = draw.top.map(|top| {
        let number = |at: usize| f32::from_bits(answer[OF_TOKEN + at]);
        let ids = answer[OF_TOKEN + 4..].as_chunks().0.iter();
        Likely {
            logit: number(0),
            greatest: number(1),
            sum: f64::from(number(2)) + f64::from(number(3)),
            top: ids
                .take(top.min(width))
                .map(|[id, logit]| (*id, f32::from_bits(*logit)))
                .collect(),
        }
    });
    Some(Drawn::Token(id, likely))
}

fn cube() -> CubeDim {
    CubeDim::new_1d(UNITS as u32)
}

/// Rows that are drawn from, and what their runs tell the cube that draws.
struct Rows<'a, R: Runtime> {
    logits: &'a Numbers<R>,
    asks: Numbers<R>,
    parts: Numbers<R>,
    /// A sum of 64 bits for each run.
    sums: Numbers<R>,
    bins: Numbers<R>,
    likeliest: Numbers<R>,
    /// Whether some row is drawn from by chance, and whether from its likeliest tokens.
    weighs: bool,
    cuts: bool,
}

impl<'a, R: Runtime> Rows<'a, R> {
    fn new(logits: &'a Numbers<R>, asks: Vec<u32>) -> Self {
        let rows = logits.rows;
        let how = || asks.iter().step_by(OF_ASK);
        let (weighs, cuts) = (how().any(|how| *how != GREEDY), how().any(|how| *how == NUCLEUS));
        Self {
            parts: logits.like([rows, PARTS * OF_PART]),
            sums: logits.like([rows, 2 * PARTS]),
            bins: logits.like([rows, OF_BINS]),
            // Not read where there are none.
            likeliest: logits.like([if cuts { rows } else { 1 }, 2 * CANDIDATES]),
            asks: Numbers::words(&logits.site, asks),
            logits,
            weighs,
            cuts,
        }
    }

    const fn client(&self) -> &ComputeClient<R> {
        &self.logits.site.client
    }

    /// A cube for each run of each row.
    fn runs(&self) -> CubeCount {
        grid(PARTS, self.logits.rows)
    }

    /// The runs' sums, which are numbers of 64 bits.
    fn sums(&self) -> ArrayArg<R> {
        // SAFETY: the memory was made for twice as many numbers of 32 bits.
        unsafe { ArrayArg::from_raw_parts(self.sums.memory.handle.clone(), self.sums.len() / 2) }
    }

    /// Draws a token of each row.
    fn pick(&self, drawn: &Numbers<R>) {
        let (logits, width) = (self.logits, self.logits.width);
        count_launch();
        // SAFETY: a cube for each run of each row keeps to what the row has there, as do those of the next two.
        unsafe {
            draw::scout::launch_unchecked::<R>(
                self.client(),
                self.runs(),
                cube(),
                logits.array(),
                self.parts.array(),
                self.bins.array(),
                width,
            );
        }
        if self.weighs {
            count_launch();
            // SAFETY: as above.
            unsafe {
                draw::weigh::launch_unchecked::<R>(
                    self.client(),
                    self.runs(),
                    cube(),
                    logits.array(),
                    self.asks.array(),
                    self.parts.array(),
                    self.sums(),
                    self.bins.array(),
                    width,
                );
            }
        }
        if self.cuts {
            count_launch();
            // SAFETY: as above, and no more tokens of a row are collected than there are places.
            unsafe {
                draw::collect::launch_unchecked::<R>(
                    self.client(),
                    self.runs(),
                    cube(),
                    logits.array(),
                    self.asks.array(),
                    self.parts.array(),
                    self.bins.array(),
                    self.likeliest.array(),
                    width,
                );
            }
        }
        count_launch();
        // SAFETY: a cube for each row keeps to the row's width, its asks and its answers; candidates are at most as many as
        // the row has tokens and as there are places, and those that were collected are read of rows that are cut alone.
        unsafe {
            draw::choose::launch_unchecked::<R>(
                self.client(),
                grid(logits.rows, 1),
                cube(),
                logits.array(),
                self.asks.array(),
                self.parts.array(),
                self.sums(),
                self.bins.array(),
                self.likeliest.array(),
                drawn.array(),
                width,
                drawn.width,
            );
        }
    }

    /// Tells how likely the drawn tokens were.
    fn tell(&self, drawn: &Numbers<R>) {
        let (logits, width) = (self.logits, self.logits.width);
        let shortlists = logits.like([logits.rows, PARTS * OF_SHORTLIST]);
        count_launch();
        // SAFETY: as for `pick`; a run has room for as many likely tokens as can be asked for.
        unsafe {
            draw::survey::launch_unchecked::<R>(
                self.client(),
                self.runs(),
                cube(),
                logits.array(),
                self.asks.array(),
                shortlists.array(),
                self.sums(),
                width,
            );
        }
        count_launch();
        // SAFETY: as for `pick`; a row has room for as many likely tokens as can be asked for.
        unsafe {
            draw::tell::launch_unchecked::<R>(
                self.client(),
                grid(logits.rows, 1),
                cube(),
                logits.array(),
                self.asks.array(),
                shortlists.array(),
                self.sums(),
                drawn.array(),
                width,
                drawn.width,
            );
        }
    }
}

/// All rows' edits, and what they changed.
struct Edits<R: Runtime> {
    words: Numbers<R>,
    before: Numbers<R>,
    count: usize,
}

impl<R: Runtime> Edits<R> {
    /// `None` if there are none.
    fn new(logits: &Numbers<R>, draws: &[Draw]) -> Option<Self> {
        let count = draws.iter().map(|draw| draw.edits.len()).sum();
        if count == 0 {
            return None;
        }
        assert!(
            u32::try_from(logits.len()).is_ok(),
            "logits whose places are numbers of 32 bits"
        );
        let mut words = Vec::with_capacity(count * draw::OF_EDIT);
        for (row, draw) in draws.iter().enumerate() {
            for edit in &draw.edits {
                let token = edit.token as usize;
                assert!(token < logits.width, "a token of the vocabulary");
                let numbers = [
                    (edit.repetition, draw::REPETITION),
                    (edit.less, draw::LESS),
                    (edit.bias, draw::BIAS),
                ];
                let what = numbers
                    .iter()
                    .filter(|(number, _)| number.is_some())
                    .map(|(_, flag)| flag);
                words.extend([(row * logits.width + token) as u32, what.sum()]);
                words.extend(numbers.map(|(number, _)| number.map_or(0, f32::to_bits)));
            }
        }
        Some(Self {
            words: Numbers::words(&logits.site, words),
            before: logits.like([1, count]),
            count,
        })
    }

    fn make(&self, logits: &Numbers<R>) {
        count_launch();
        // SAFETY: each unit below the number of edits changes a logit that is there.
        unsafe {
            draw::edit::launch_unchecked::<R>(
                &logits.site.client,
                over(&logits.site.client, self.count),
                units(),
                logits.array(),
                self.words.array(),
                self.before.array(),
                self.count,
            );
        }
    }

    fn take_back(&self, logits: &Numbers<R>) {
        count_launch();
        // SAFETY: as for `make`.
        unsafe {
            draw::restore::launch_unchecked::<R>(
                &logits.site.client,
                over(&logits.site.client, self.count),
                units(),
                logits.array(),
                self.words.array(),
                self.before.array(),
                self.count,
            );
        }
    }
}

impl<R: Runtime> Numbers<R> {
    fn read_words(&self) -> Result<Vec<u32>, String> {
        let bytes: Bytes = self.fetch()?;
        let (words, _) = bytes.as_chunks();
        Ok(words.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect())
    }
}
