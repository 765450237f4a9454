use super::{
    super::{
        index::StoredDtype,
        pickle_writer::{TensorToPickle, write_tensors},
    },
    *,
};
use proptest::{collection::vec, prelude::*};

fn written(names: &[String], shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let tensors: Vec<_> =
        names.iter().map(|name| TensorToPickle { name, dtype: &StoredDtype::BF16, shape, strides }).collect();
    write_tensors(&tensors)
}

#[test]
fn what_python_writes_for_an_ordered_dict_is_read() {
    // pickle.dumps(OrderedDict(w=Parameter(..))) with the attribute `_metadata`, protocol 2,
    // assembled by hand from the opcodes that CPython emits.
    let mut pickle = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01".to_vec();
    pickle.extend(b"X\x01\x00\x00\x00wq\x02ctorch._utils\n_rebuild_parameter\nq\x03");
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\nq\x04((X\x07\x00\x00\x00storageq\x05");
    pickle.extend(b"ctorch\nFloatStorage\nq\x06X\x01\x00\x00\x007q\x07X\x03\x00\x00\x00cpuq\x08K\x08tq\x09Q");
    pickle.extend(b"K\x02K\x03K\x02\x86q\x0aK\x02K\x01\x86q\x0b\x89h\x00)Rq\x0ctq\x0dRq\x0e");
    pickle.extend(b"\x88h\x00)Rq\x0f\x87q\x10Rq\x11s");
    pickle.extend(b"}q\x12X\x09\x00\x00\x00_metadataq\x13h\x00)Rq\x14sb.");
    let tensors = read_tensors(&pickle).unwrap();
    let expected = PickledTensor {
        storage_class: "FloatStorage".into(),
        key: "7".into(),
        storage_length: 8,
        offset: 2,
        shape: vec![3, 2],
        strides: vec![2, 1],
    };
    assert_eq!(tensors, BTreeMap::from([("w".into(), expected)]));
}

#[test]
fn anything_but_tensors_is_refused_by_name() {
    let refusal = |pickle: &[u8]| match read_tensors(pickle).unwrap_err() {
        PickleError::Foreign(problem) => problem,
        PickleError::Damaged(problem) => panic!("{problem}"),
    };
    let problem = refusal(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.");
    assert!(problem.contains("os.system"), "{problem}");
    let problem = refusal(b"\x80\x02}X\x05\x00\x00\x00model}s.");
    assert!(problem.contains("`model`") && problem.contains("dictionary of its own"), "{problem}");
    assert!(refusal(b"\x80\x02].").contains("no dictionary of tensors"));
}

#[test]
fn values_beside_the_tensors_are_left_out_however_large() {
    let mut pickle = written(&["w".into()], &[2], &[1]);
    assert_eq!(pickle.pop(), Some(b'.'));
    pickle.extend(b"X\x04\x00\x00\x00seed\x8a\x0b\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01s");
    pickle.extend(b"X\x04\x00\x00\x00note](K\x01K\x02es.");
    assert_eq!(read_tensors(&pickle).unwrap().keys().map(|name| &**name).collect::<Vec<_>>(), ["w"]);
}

#[test]
fn nesting_is_bounded() {
    let mut pickle = b"\x80\x02)".to_vec();
    pickle.extend(std::iter::repeat_n(0x85, 1 << 20));
    pickle.push(b'.');
    let error = read_tensors(&pickle).unwrap_err();
    assert_eq!(error, PickleError::Damaged("its values are nested too deeply".into()));
}

#[test]
fn a_recalled_dictionary_is_no_empty_one() {
    assert!(read_tensors(b"\x80\x02}q\x00h\x00.").is_err());
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        names in proptest::collection::btree_set("[a-z.0-9]{1,40}", 0..20),
        shape in vec(1_i64..1000, 0..4),
    ) {
        let names: Vec<String> = names.into_iter().collect();
        let strides = super::super::mapped::contiguous_strides(&shape);
        let read = read_tensors(&written(&names, &shape, &strides)).unwrap();
        prop_assert_eq!(read.keys().map(|name| name.to_string()).collect::<Vec<_>>(), names);
        for (key, tensor) in read.values().enumerate() {
            prop_assert_eq!(&tensor.shape, &shape);
            prop_assert_eq!(&tensor.strides, &strides);
            prop_assert_eq!(&*tensor.storage_class, "BFloat16Storage");
            prop_assert_eq!(&*tensor.key, key.to_string());
            prop_assert_eq!(tensor.storage_length, shape.iter().product::<i64>());
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = read_tensors(&bytes);
    }

    #[test]
    fn damaged_pickles_never_panic(
        cut in any::<prop::sample::Index>(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let names = ["a".to_owned(), "b.weight".to_owned()];
        let mut pickle = written(&names, &[3, 4], &[4, 1]);
        for (place, value) in flips {
            let place = place.index(pickle.len());
            pickle[place] = value;
        }
        pickle.truncate(cut.index(pickle.len() + 1));
        let _ = read_tensors(&pickle);
    }

    #[test]
    fn every_opcode_in_any_order_never_panics(
        opcodes in vec(
            prop::sample::select(b"\x80\x95N\x88\x89KMJ\x8aGX\x8cUT()\x85\x86\x87t]ae}suqr\x94hjc\x93QR\x81b.\x00\x01\n".to_vec()),
            0..300,
        ),
    ) {
        let _ = read_tensors(&opcodes);
    }
}
