//! What must hold of the language model whatever its weights are.

use super::{MplugOwl2, Parameters};
use crate::model::{
    config::{ModelConfig, RopeScaling},
    family::{Block, Family, Part, Sequences},
    kv_cache::KvCache,
    passes::Passes,
    synthetic::{config, distance, network, network_in, noise, parameters},
};
use tch::{Kind, Tensor};

const HIDDEN: i64 = 32;

fn forward(
    model: &MplugOwl2,
    cache: &mut KvCache,
    embeddings: &Tensor,
    image: std::ops::Range<i64>,
) -> Tensor {
    model.forward(&Block::new(embeddings, image), cache).unwrap()
}

fn sequences(model: &MplugOwl2, embeddings: &Tensor, images: &[std::ops::Range<i64>]) -> Tensor {
    model.forward_sequences(&Sequences { embeddings, images }, &mut Passes::Kept).unwrap()
}

/// Configurations in which positions mean something else.
fn scalings() -> [ModelConfig; 3] {
    let linear = {
        let mut config = config();
        config.language.rope_scaling = Some(RopeScaling::Linear(3.0));
        config
    };
    let full_heads = {
        let mut config = config();
        config.language.num_key_value_heads = config.language.num_attention_heads;
        config
    };
    [config(), linear, full_heads]
}

#[test]
fn grouped_heads_equal_repeated_heads() {
    let grouped = network(config());
    let mut wide = config();
    let groups = wide.language.num_attention_heads / wide.language.num_key_value_heads;
    wide.language.num_key_value_heads = wide.language.num_attention_heads;
    let head_dim = wide.language.head_dim();
    let repeat = |tensor: &Tensor| {
        let mut heads = tensor.size();
        heads.splice(0..1, [tensor.size()[0] / head_dim, head_dim]);
        let mut repeated = tensor.size();
        repeated[0] *= groups;
        tensor.view(&heads[..]).repeat_interleave_self_int(groups, 0, None).reshape(&repeated[..])
    };
    let repeated = parameters(&config())
        .iter()
        .map(|(name, tensor)| {
            let shared = name.contains("k_proj") || name.contains("v_proj");
            (name.to_owned(), if shared { repeat(tensor) } else { tensor.shallow_clone() })
        })
        .collect();
    let wide = MplugOwl2::new(wide, Parameters::new(repeated)).unwrap();

    let (mut narrow_cache, mut wide_cache) =
        (grouped.new_cache(2, 16).unwrap(), wide.new_cache(2, 16).unwrap());
    for (count, image) in [(7, 2..5), (1, 0..0), (3, 0..0)] {
        let block = noise(&[2, count, HIDDEN], count as u32);
        let narrow = forward(&grouped, &mut narrow_cache, &block, image.clone());
        let repeated = forward(&wide, &mut wide_cache, &block, image);
        assert!(distance(&narrow, &repeated) < 1e-5);
    }
}

#[test]
fn uneven_rows_equal_separate_runs() {
    for config in scalings() {
        compare_uneven_rows(&network(config), 1e-5);
    }
}

#[test]
fn uneven_rows_equal_separate_runs_in_bf16() {
    // Rounding moves states by about 0.1 here, a wrong position by more than 2.
    for config in scalings() {
        compare_uneven_rows(&network_in(config, Kind::BFloat16), 0.4);
    }
}

fn compare_uneven_rows(model: &MplugOwl2, tolerance: f64) {
    let noise = |count, seed| noise(&[3, count, HIDDEN], seed).to_kind(model.kind());
    let (start, block, step) = (noise(6, 1), noise(4, 2), noise(1, 3));
    let lengths = [3, 6, 1];

    let mut cache = model.new_cache(3, 8).unwrap();
    let _ = forward(model, &mut cache, &start, 0..2);
    for (row, length) in lengths.into_iter().enumerate() {
        cache.truncate(row, length);
    }
    let together = [forward(model, &mut cache, &block, 1..3), forward(model, &mut cache, &step, 0..0)];
    assert_eq!(cache.lengths(), [8, 11, 6]);

    for (row, length) in lengths.into_iter().enumerate() {
        let mut cache = model.new_cache(1, 64).unwrap();
        let only = |tensor: &Tensor| tensor.narrow(0, row as i64, 1);
        let _ = forward(model, &mut cache, &only(&start).narrow(1, 0, length), 0..2.min(length));
        let alone =
            [forward(model, &mut cache, &only(&block), 1..3), forward(model, &mut cache, &only(&step), 0..0)];
        for (together, alone) in together.iter().zip(&alone) {
            let distance = distance(&only(together), alone);
            assert!(distance <= tolerance, "row {row}: {distance}");
        }
    }
}

#[test]
fn a_block_in_parts_equals_the_whole() {
    let model = network(config());
    let whole = noise(&[2, 12, HIDDEN], 9);
    let mut cache = model.new_cache(2, 12).unwrap();
    let expected = forward(&model, &mut cache, &whole, 3..8);

    // A cache of one position has to grow again and again.
    let mut cache = model.new_cache(2, 1).unwrap();
    let parts: Vec<Tensor> = [(0, 3, 0..0), (3, 7, 0..5), (10, 1, 0..0), (11, 1, 0..0)]
        .into_iter()
        .map(|(start, count, image)| forward(&model, &mut cache, &whole.narrow(1, start, count), image))
        .collect();
    assert!(distance(&Tensor::cat(&parts, 1), &expected) < 1e-5);
}

#[test]
fn reading_some_positions_gives_their_part_of_all() {
    for config in scalings() {
        let model = network(config);
        let (start, block, step) =
            (noise(&[3, 6, HIDDEN], 1), noise(&[3, 5, HIDDEN], 2), noise(&[3, 3, HIDDEN], 3));
        for read in [0..1, 1..3, 2..5, 4..5, 0..5] {
            let run = |whole: bool, uneven: bool| {
                let mut cache = model.new_cache(3, 16).unwrap();
                let _ = forward(&model, &mut cache, &start, 0..2);
                if uneven {
                    cache.truncate(0, 4);
                    cache.truncate(2, 1);
                }
                let block = Block::new(&block, 1..3);
                let hidden = match whole {
                    true => {
                        let hidden = model.forward(&block, &mut cache).unwrap();
                        hidden.narrow(1, read.start, read.end - read.start)
                    }
                    false => model.forward(&block.reading(read.clone()), &mut cache).unwrap(),
                };
                // What follows sees every position, read or not.
                (hidden, forward(&model, &mut cache, &step, 0..0))
            };
            for uneven in [false, true] {
                let ((whole, after_whole), (part, after_part)) = (run(true, uneven), run(false, uneven));
                assert!(distance(&whole, &part) < 1e-5, "{read:?}");
                assert!(distance(&after_whole, &after_part) < 1e-5, "{read:?}");
            }
        }
        // From the first position on.
        let empty = || model.new_cache(3, 8).unwrap();
        let whole = forward(&model, &mut empty(), &block, 1..3);
        let part = model.forward(&Block::new(&block, 1..3).reading(2..4), &mut empty()).unwrap();
        assert!(distance(&whole.narrow(1, 2, 2), &part) < 1e-5);
    }
}

#[test]
fn rows_that_begin_alike_may_share_what_they_begin_with() {
    for config in scalings() {
        let model = network(config);
        let (text, rest) = (noise(&[1, 4, HIDDEN], 1), noise(&[3, 5, HIDDEN], 2));
        let mut prefix = model.new_cache(1, 4).unwrap();
        let _ = model.forward(&Block::text(&text).reading(3..4), &mut prefix).unwrap();
        let mut shared = KvCache::beginning_with(&prefix, 3, 12).unwrap();
        assert_eq!(shared.lengths(), [4, 4, 4]);
        let shared = forward(&model, &mut shared, &rest, 0..2);

        let whole = Tensor::cat(&[text.expand([3, -1, -1], false), rest], 1);
        let whole = forward(&model, &mut model.new_cache(3, 9).unwrap(), &whole, 4..6);
        assert!(distance(&whole.narrow(1, 4, 5), &shared) < 1e-5);
        assert_eq!(prefix.lengths(), [4]);
    }
}

#[test]
fn what_is_kept_of_the_abstractor_changes_no_image() {
    let model = network(config());
    let pixels = noise(&[3, 3, 12, 12], 5) * 4.0;
    let anew = model.encode_images_in(&pixels, &mut Passes::Kept).unwrap();
    for _ in 0..2 {
        assert!(distance(&model.encode_images(&pixels).unwrap(), &anew) < 1e-5);
        assert!(
            distance(&model.encode_images(&pixels.narrow(0, 1, 1)).unwrap(), &anew.narrow(0, 1, 1)) < 1e-5
        );
    }
}

#[test]
fn rows_that_stay_are_not_changed_by_those_that_leave() {
    let model = network(config());
    let (start, step) = (noise(&[3, 5, HIDDEN], 4), noise(&[3, 1, HIDDEN], 5));
    let mut cache = model.new_cache(3, 8).unwrap();
    let _ = forward(&model, &mut cache, &start, 1..3);
    cache.truncate(2, 4);
    cache.keep_rows(&[2, 0]).unwrap();
    assert_eq!((cache.rows(), cache.lengths()), (2, &[4, 5][..]));
    let kept =
        forward(&model, &mut cache, &Tensor::cat(&[step.narrow(0, 2, 1), step.narrow(0, 0, 1)], 0), 0..0);

    let mut cache = model.new_cache(3, 8).unwrap();
    let _ = forward(&model, &mut cache, &start, 1..3);
    cache.truncate(2, 4);
    let all = forward(&model, &mut cache, &step, 0..0);
    assert!(distance(&kept.narrow(0, 0, 1), &all.narrow(0, 2, 1)) < 1e-5);
    assert!(distance(&kept.narrow(0, 1, 1), &all.narrow(0, 0, 1)) < 1e-5);
}

#[test]
fn image_positions_have_weights_of_their_own() {
    let model = network(config());
    let block = noise(&[1, 4, HIDDEN], 6);
    let run = |image| forward(&model, &mut model.new_cache(1, 4).unwrap(), &block, image);
    let text = run(0..0);
    assert!(distance(&run(1..2).narrow(1, 1, 1), &text.narrow(1, 1, 1)) > 1e-2);
    // Causal: what comes before the image can't tell, but for how sums of more rows at once are rounded.
    assert!(distance(&run(1..2).narrow(1, 0, 1), &text.narrow(1, 0, 1)) < 1e-5);
}

#[test]
fn whole_rows_equal_blocks_in_a_cache() {
    for config in scalings() {
        let model = network(config);
        let embeddings = noise(&[4, 9, HIDDEN], 11);
        // Images at one place take another way through the layers than at several.
        for images in [[2..5, 2..5, 2..5, 2..5], [0..3, 6..9, 0..0, 3..4]] {
            let together = sequences(&model, &embeddings, &images);
            for (row, image) in (0..).zip(images) {
                let alone = embeddings.narrow(0, row, 1);
                let alone = forward(&model, &mut model.new_cache(1, 9).unwrap(), &alone, image);
                assert!(distance(&together.narrow(0, row, 1), &alone) < 1e-5, "row {row}");
            }
        }
    }
}

#[test]
fn what_follows_a_row_s_end_changes_nothing_before_it() {
    let model = network(config());
    let embeddings = noise(&[2, 8, HIDDEN], 12);
    let run = |embeddings: &Tensor| sequences(&model, embeddings, &[1..4, 2..5]).narrow(1, 0, 6);
    let other = Tensor::cat(&[embeddings.narrow(1, 0, 6), noise(&[2, 2, HIDDEN], 13)], 1);
    assert!(distance(&run(&embeddings), &run(&other)) < 1e-6);
}

#[test]
fn every_parameter_belongs_to_a_part() {
    let model = network(config());
    let parts = |part| model.parameters().iter().filter(|(name, _)| model.part(name) == part).count();
    assert!([Part::Vision, Part::Connector, Part::Language].into_iter().all(|part| parts(part) > 10));
    assert_eq!(model.part("lm_head.weight"), Part::Language);
    assert_eq!(model.part("model.visual_abstractor.visual_fc.weight"), Part::Connector);
}

#[test]
fn tied_embeddings_are_the_head() {
    let mut config = config();
    config.language.tie_word_embeddings = true;
    let model = network(config);
    let hidden = noise(&[1, 1, HIDDEN], 8);
    let embeddings = model.parameters().root().tensor("model.embed_tokens.weight").unwrap();
    assert!(distance(&model.logits(&hidden).unwrap(), &hidden.matmul(&embeddings.tr())) < 1e-6);
}

#[test]
fn a_missing_parameter_is_named() {
    let lacking = parameters(&config())
        .iter()
        .filter(|(name, _)| *name != "model.layers.1.mlp.up_proj.weight")
        .map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()))
        .collect();
    let error = MplugOwl2::new(config(), Parameters::new(lacking)).err().unwrap().to_string();
    assert!(error.contains("`model.layers.1.mlp.up_proj.weight`"), "{error}");
}

#[test]
fn training_reaches_every_parameter_by_its_name() {
    let model = network(config());
    for (_, parameter) in model.parameters().iter() {
        let _ = parameter.set_requires_grad(true);
    }
    let patches = model.vision().forward(&noise(&[1, 3, 12, 12], 3)).unwrap();
    let image = model.abstractor().forward(&patches).unwrap();
    let text = model.embed(&Tensor::from_slice(&[1_i64, 7]).view([1, 2])).unwrap();
    let count = image.size()[1];
    let embeddings = Tensor::cat(&[&image, &text], 1);
    let hidden = sequences(&model, &embeddings, std::slice::from_ref(&(0..count)));
    model.logits(&hidden).unwrap().square().sum(Kind::Float).backward();
    for (name, parameter) in model.parameters().iter() {
        assert!(parameter.grad().defined(), "{name} has no gradient");
    }
}
