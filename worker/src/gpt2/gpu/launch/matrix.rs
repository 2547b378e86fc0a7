//! Weight matrices on the device, and the products with them.

use claimcheck_common::domain::Order;
use cubecl::prelude::*;

use super::super::layout::{self, Layout, Panels};
use super::super::linear::Epilogue;
use super::super::sums::UNITS;
use super::super::tensor::{few, many};
use super::super::words::Word;
use super::super::{Around, Gpu, linear, tensor, tiles};
use super::{Numbers, Site, count_launch, grid, over, units};

/// A packed weight matrix.
pub(in crate::gpt2) struct Matrix<R: Runtime> {
    /// Words, as `layout.rs` lays them out.
    packed: Numbers<R>,
    inputs: usize,
    outputs: usize,
    layout: Layout,
}

impl<R: Runtime> Matrix<R> {
    /// A matrix of which no column is packed yet, in the layout that suits it and the device.
    pub(in super::super) fn reserve(site: &Site<R>, [inputs, outputs]: [usize; 2], word: Word) -> Self {
        let layout = if tensor::fits(&site.client, word, inputs) {
            Layout::Fragments
        } else {
            Layout::Panels(Panels::new(word, outputs))
        };
        Self {
            packed: Numbers::reserve(site, [1, layout.words(inputs, outputs)]),
            inputs,
            outputs,
            layout,
        }
    }

    /// Columns that lie together: [`Self::pack`] begins with one of every so many.
    pub(in super::super) const fn columns_at_once(&self) -> usize {
        self.layout.columns()
    }

    /// Packs the columns from `first` on: of `source [inputs, count]`, or `[count, inputs]` if `transposed`.
    pub(in super::super) fn pack(&mut self, source: &Numbers<R>, first: usize, transposed: bool) {
        let (count, of_input, of_column) = if transposed {
            (source.rows, 1, self.inputs)
        } else {
            (source.width, source.width, 1)
        };
        let words = self.layout.words(self.inputs, count);
        assert_eq!(source.len(), count * self.inputs, "whole columns");
        assert!(
            first.is_multiple_of(self.columns_at_once()),
            "columns that lie together"
        );
        assert!(self.layout.words(self.inputs, first) + words <= self.packed.len());
        let client = &self.packed.site.client;
        count_launch();
        // SAFETY: each unit below `words` reads within `[inputs, count]` and writes one word of the packed ones.
        unsafe {
            layout::pack_columns::launch_unchecked::<R>(
                client,
                over(client, words),
                units(),
                source.array(),
                self.packed.array(),
                first,
                count,
                self.inputs,
                of_input,
                of_column,
                words,
                self.layout,
            );
        }
    }

    /// The columns `ids` as rows, plus the rows `places` of `positions [_, inputs]`.
    pub(in super::super) fn columns(&self, positions: &Numbers<R>, ids: &[u32], places: &[u32]) -> Numbers<R> {
        assert_eq!((positions.width, places.len()), (self.inputs, ids.len()));
        assert!(
            ids.iter().all(|id| (*id as usize) < self.outputs),
            "tokens of the vocabulary"
        );
        assert!(
            places.iter().all(|place| (*place as usize) < positions.rows),
            "places of the context"
        );
        let y = self.packed.like([ids.len(), self.inputs]);
        let client = &self.packed.site.client;
        let which = Numbers::words(&self.packed.site, [ids, places].concat());
        count_launch();
        // SAFETY: each unit below the number of elements reads a column and a position that exist and writes one element.
        unsafe {
            layout::embed::launch_unchecked::<R>(
                client,
                over(client, y.len()),
                units(),
                self.packed.array(),
                positions.array(),
                which.array(),
                y.array(),
                self.inputs,
                ids.len(),
                self.layout,
            );
        }
        y
    }

    /// See [`crate::gpt2::Gpt2Backend::project`].
    pub(in super::super) fn project(&self, x: &Numbers<R>, around: &Around<'_, Gpu<R>>) -> Numbers<R> {
        assert_eq!(x.width, self.inputs, "as many inputs as the matrix has");
        assert!(around.bias.is_none_or(|bias| bias.len() == self.outputs));
        let shape = [x.rows, self.outputs];
        assert!(around.residual.is_none_or(|residual| residual.shape() == shape));
        let y = x.like(shape);
        match self.layout {
            Layout::Fragments => match tensor::Shape::of(x.rows, self.outputs) {
                tensor::Shape::Few(shape) => self.project_few(shape, x, around, &y),
                tensor::Shape::Many(shape) => self.project_many(shape, &x.normalized(around.norm), around, &y),
            },
            Layout::Panels(panels) => {
                let x = x.normalized(around.norm);
                if x.site.order == Order::Fast && x.rows >= tiles::FROM {
                    self.project_tiles(panels, &x, around, &y);
                } else {
                    self.project_panels(panels, &x, around, &y);
                }
            }
        }
        y
    }

    fn project_few(&self, shape: few::Shape, x: &Numbers<R>, around: &Around<'_, Gpu<R>>, y: &Numbers<R>) {
        let room = x.site.client.properties().hardware.max_shared_memory_size;
        let normalizes = shape.normalizes(x.rows, self.outputs) && shape.shared_bytes(self.inputs) <= room;
        let (norm, apart) = if normalizes {
            (around.norm, None)
        } else {
            (None, around.norm)
        };
        let x = x.normalized(apart);
        count_launch();
        // SAFETY: rows and outputs are those of the arguments, and the kernel leaves out what lies beyond them; `fits` said that the
        // device has the cores, and `room` the memory. Of gamma, beta, bias and residual none is read that is not there: `x` stands in.
        unsafe {
            few::project::launch_unchecked::<R>(
                &x.site.client,
                grid(self.outputs.div_ceil(shape.columns()), x.rows.div_ceil(shape.rows())),
                CubeDim::new_1d(tensor::UNITS as u32),
                x.array(),
                norm.map_or(&x, |norm| norm.gamma.of(self.inputs)).array(),
                norm.map_or(&x, |norm| norm.beta.of(self.inputs)).array(),
                self.packed.array(),
                around.bias.unwrap_or(&x).array(),
                around.residual.unwrap_or(&x).array(),
                y.array(),
                x.rows,
                self.inputs,
                self.outputs,
                norm.map_or(0.0, |norm| norm.epsilon),
                shape,
                norm.map(|_| self.inputs),
                epilogue(around),
            );
        }
    }

    fn project_many(&self, shape: many::Shape, x: &Numbers<R>, around: &Around<'_, Gpu<R>>, y: &Numbers<R>) {
        count_launch();
        // SAFETY: as for `project_few`.
        unsafe {
            many::project::launch_unchecked::<R>(
                &x.site.client,
                grid(self.outputs.div_ceil(shape.columns()), x.rows.div_ceil(shape.rows())),
                CubeDim::new_1d(tensor::UNITS as u32),
                x.array(),
                self.packed.array(),
                around.bias.unwrap_or(x).array(),
                around.residual.unwrap_or(x).array(),
                y.array(),
                x.rows,
                self.inputs,
                self.outputs,
                shape,
                epilogue(around),
            );
        }
    }

    fn project_panels(&self, panels: Panels, x: &Numbers<R>, around: &Around<'_, Gpu<R>>, y: &Numbers<R>) {
        let tile = self.tile(panels, x.rows);
        count_launch();
        // SAFETY: as for `project_few`.
        unsafe {
            linear::project::launch_unchecked::<R>(
                &x.site.client,
                grid(panels.count(self.outputs), x.rows.div_ceil(tile)),
                units(),
                x.array(),
                self.packed.array(),
                around.bias.unwrap_or(x).array(),
                around.residual.unwrap_or(x).array(),
                y.array(),
                x.rows,
                self.inputs,
                self.outputs,
                panels,
                tile,
                epilogue(around),
            );
        }
    }

    /// In another order.
    fn project_tiles(&self, panels: Panels, x: &Numbers<R>, around: &Around<'_, Gpu<R>>, y: &Numbers<R>) {
        count_launch();
        // SAFETY: as for `project_few`.
        unsafe {
            tiles::project::launch_unchecked::<R>(
                &x.site.client,
                grid(self.outputs.div_ceil(tiles::COLUMNS), x.rows.div_ceil(tiles::ROWS)),
                units(),
                x.array(),
                self.packed.array(),
                around.bias.unwrap_or(x).array(),
                around.residual.unwrap_or(x).array(),
                y.array(),
                x.rows,
                self.inputs,
                self.outputs,
                panels,
                epilogue(around),
            );
        }
    }

    /// How many rows a cube takes: a power of two, so that few kernels are compiled, whose sums the device has memory for.
    fn tile(&self, panels: Panels, rows: usize) -> usize {
        let of_row = UNITS * panels.of_vector() * size_of::<f32>();
        let room = self.packed.site.client.properties().hardware.max_shared_memory_size / of_row;
        let most = linear::TILE.min(room.max(1));
        rows.next_power_of_two().min(1 << most.ilog2())
    }
}

fn epilogue<R: Runtime>(around: &Around<'_, Gpu<R>>) -> Epilogue {
    Epilogue {
        bias: around.bias.is_some(),
        activation: around.activation,
        residual: around.residual.is_some(),
    }
}
