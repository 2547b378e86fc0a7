//! The kernels with their arguments: numbers on the device in, numbers on the device out.
//!
//! With `draw.rs` and `matrix.rs` beneath, the only place with `unsafe`: a kernel reads and writes without looking at bounds, so they are checked here before.

#![allow(unsafe_code)]

mod draw;
mod matrix;
mod spare;

use std::cell::Cell;
use std::sync::Arc;

use claimcheck_common::domain::Order;
use cubecl::bytes::Bytes;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

pub(super) use draw::{draw, draws};
pub(in crate::gpt2) use matrix::Matrix;
use spare::{Lent, Spare};

use super::sums::UNITS;
use super::{Gpu, Norm, attention, norm, rows};

/// The way to a device for one model, and what is allowed there.
pub(in crate::gpt2) struct Site<R: Runtime> {
    client: ComputeClient<R>,
    order: Order,
    spare: Arc<Spare>,
}

impl<R: Runtime> Site<R> {
    pub(in crate::gpt2) fn new(device: &R::Device, order: Order) -> Self {
        Self {
            client: R::client(device),
            order,
            spare: Arc::default(),
        }
    }

    pub(super) const fn client(&self) -> &ComputeClient<R> {
        &self.client
    }

    pub(super) const fn order(&self) -> Order {
        self.order
    }

    /// Gives memory back that no result needs.
    pub(in crate::gpt2) fn clear(&self) {
        self.spare.clear();
    }
}

impl<R: Runtime> Clone for Site<R> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            order: self.order,
            spare: self.spare.clone(),
        }
    }
}

/// Numbers of 32 bits on the device, in rows.
pub(in crate::gpt2) struct Numbers<R: Runtime> {
    site: Site<R>,
    memory: Arc<Lent>,
    rows: usize,
    width: usize,
}

impl<R: Runtime> Clone for Numbers<R> {
    fn clone(&self) -> Self {
        Self {
            site: self.site.clone(),
            memory: self.memory.clone(),
            ..*self
        }
    }
}

/// A step's tokens and block tables, on the device.
pub(super) struct Table<R: Runtime> {
    /// As `attention.rs` reads it.
    numbers: Numbers<R>,
    tokens: usize,
    /// No sequence has more than one.
    single: bool,
}

fn units() -> CubeDim {
    CubeDim::new_1d(UNITS as u32)
}

fn grid(x: usize, y: usize) -> CubeCount {
    CubeCount::Static(x as u32, y as u32, 1)
}

thread_local! {
    /// Of this thread, since it was last asked.
    static STARTED: Cell<Counts> = const { Cell::new(Counts::NONE) };
}

/// What a step starts on the device: what a small one costs is mostly that.
#[derive(Clone, Copy)]
pub(super) struct Counts {
    kernels: u64,
    reads: u64,
    draws_left: u64,
}

impl Counts {
    const NONE: Self = Self {
        kernels: 0,
        reads: 0,
        draws_left: 0,
    };

    /// What `work` starts on this thread.
    pub(super) fn of<T>(work: impl FnOnce() -> T) -> (T, Self) {
        STARTED.set(Self::NONE);
        let outcome = work();
        (outcome, STARTED.get())
    }

    /// To whom counts metrics on the calling thread.
    pub(super) fn tell(self) {
        metrics::counter!("claimcheck_engine_kernel_launches_total").increment(self.kernels);
        metrics::counter!("claimcheck_engine_readbacks_total").increment(self.reads);
        metrics::counter!("claimcheck_engine_draws_left_to_host_total").increment(self.draws_left);
    }

    fn add(change: impl FnOnce(&mut Self)) {
        let mut started = STARTED.get();
        change(&mut started);
        STARTED.set(started);
    }
}

/// For each kernel that is started.
fn count_launch() {
    Counts::add(|started| started.kernels += 1);
}

/// As many cubes as give every element a unit.
fn over<R: Runtime>(client: &ComputeClient<R>, elements: usize) -> CubeCount {
    calculate_cube_count_elemwise(client, elements, units())
}

impl<R: Runtime> Numbers<R> {
    /// Memory for `[rows, width]` numbers that stays, whatever stands there.
    pub(super) fn reserve(site: &Site<R>, [rows, width]: [usize; 2]) -> Self {
        Self {
            site: site.clone(),
            memory: Arc::new(site.client.empty(rows * width * size_of::<u32>()).into()),
            rows,
            width,
        }
    }

    /// Brings `[rows, width]` floats to the device.
    pub(super) fn floats(site: &Site<R>, values: Vec<f32>, [rows, width]: [usize; 2]) -> Self {
        assert_eq!(values.len(), rows * width, "as many numbers as the shape has");
        Self {
            site: site.clone(),
            memory: Arc::new(site.client.create(Bytes::from_elems(values)).into()),
            rows,
            width,
        }
    }

    fn words(site: &Site<R>, words: Vec<u32>) -> Self {
        Self {
            site: site.clone(),
            rows: 1,
            width: words.len(),
            memory: Arc::new(site.client.create(Bytes::from_elems(words)).into()),
        }
    }

    /// Brings floats back, or says why the device did not.
    pub(super) fn read(self) -> Result<Vec<f32>, String> {
        let bytes = self.fetch()?;
        let (values, rest) = bytes.as_chunks();
        assert!(rest.is_empty() && values.len() == self.rows * self.width);
        Ok(values.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect())
    }

    /// Waits for the device. The one place where a step does.
    fn fetch(&self) -> Result<Bytes, String> {
        Counts::add(|started| started.reads += 1);
        let memory = self.memory.handle.clone();
        let beyond = memory.size_in_used() - (self.len() * size_of::<u32>()) as u64;
        let bytes = self.site.client.read_one(memory.offset_end(beyond));
        bytes.map_err(|error| error.to_string())
    }

    pub(super) const fn site(&self) -> &Site<R> {
        &self.site
    }

    pub(super) const fn shape(&self) -> [usize; 2] {
        [self.rows, self.width]
    }

    const fn len(&self) -> usize {
        self.rows * self.width
    }

    /// Memory for a result of these numbers, whatever stands there.
    fn like(&self, [rows, width]: [usize; 2]) -> Self {
        let site = self.site.clone();
        let memory = site.spare.lend(&site.client, rows * width * size_of::<u32>());
        Self {
            memory: Arc::new(memory),
            site,
            rows,
            width,
        }
    }

    /// For a kernel.
    fn array(&self) -> ArrayArg<R> {
        // SAFETY: the memory was made for at least this many numbers.
        unsafe { ArrayArg::from_raw_parts(self.memory.handle.clone(), self.len()) }
    }

    /// The rows `which`, in that order.
    pub(super) fn rows(&self, which: &[usize]) -> Self {
        assert!(which.iter().all(|row| *row < self.rows), "rows that exist");
        let some = self.like([which.len(), self.width]);
        let which = Self::words(&self.site, which.iter().map(|row| *row as u32).collect());
        count_launch();
        // SAFETY: each unit below the number of elements reads a row that exists and writes one element.
        unsafe {
            rows::gather::launch_unchecked::<R>(
                &self.site.client,
                over(&self.site.client, some.len()),
                units(),
                self.array(),
                which.array(),
                some.array(),
                self.width,
                some.len(),
            );
        }
        some
    }

    /// These, which are as many as that.
    fn of(&self, count: usize) -> &Self {
        assert_eq!(self.len(), count);
        self
    }

    /// The rows by that norm, or as they are.
    fn normalized(&self, norm: Option<&Norm<Gpu<R>>>) -> Self {
        let Some(norm) = norm else {
            return self.clone();
        };
        let y = self.like(self.shape());
        count_launch();
        // SAFETY: the units of a row keep to its width, and none writes to rows that are not there.
        unsafe {
            norm::layer_norm::launch_unchecked::<R>(
                &self.site.client,
                grid(self.rows.div_ceil(norm::ROWS), 1),
                units(),
                self.array(),
                norm.gamma.of(self.width).array(),
                norm.beta.of(self.width).array(),
                y.array(),
                self.rows,
                norm.epsilon,
                self.width,
            );
        }
        y
    }
}

impl<R: Runtime> Table<R> {
    pub(super) fn new(site: &Site<R>, numbers: Vec<u32>, tokens: usize, single: bool) -> Self {
        Self {
            numbers: Numbers::words(site, numbers),
            tokens,
            single,
        }
    }
}

/// See [`super::super::Gpt2Backend::attend`]. The table names blocks that `cache` has, and enough of them for each token.
pub(super) fn attend<R: Runtime>(
    qkv: &Numbers<R>,
    cache: &Numbers<R>,
    table: &Table<R>,
    plan: attention::Plan,
) -> Numbers<R> {
    let width = plan.heads * plan.head_dim;
    assert_eq!(
        qkv.shape(),
        [table.tokens, 3 * width],
        "queries, keys and values of the table's tokens"
    );
    let mixed = qkv.like([table.tokens, width]);
    let client = &qkv.site.client;
    if !table.single {
        let words = table.tokens * plan.heads * plan.of_token();
        count_launch();
        // SAFETY: each unit below `words` writes to the place of a token, which lies in a block that `cache` has.
        unsafe {
            attention::write::launch_unchecked::<R>(
                client,
                over(client, words),
                units(),
                qkv.array(),
                cache.array(),
                table.numbers.array(),
                words,
                plan,
            );
        }
    }
    count_launch();
    // SAFETY: a cube for each head and token reads as many places of the cache as the token's block table has.
    unsafe {
        attention::attend::launch_unchecked::<R>(
            client,
            grid(plan.heads, table.tokens),
            units(),
            qkv.array(),
            cache.array(),
            table.numbers.array(),
            mixed.array(),
            1.0 / (plan.head_dim as f32).sqrt(),
            plan,
            table.single,
        );
    }
    mixed
}
