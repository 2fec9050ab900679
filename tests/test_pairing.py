"""Pairs are a pure function of (seed, epoch, item), masks come from lengths, and processes share the same steps."""

from collections import Counter

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from tiny import tiny_rows, tiny_tokenizer
from torch.utils.data import BatchSampler, DataLoader

from llm_unlearn.data.collator import DataCollatorForUnlearning, collate
from llm_unlearn.data.pairing import ForgetRetainDataset, Pair, PairSampler, plan_epoch
from llm_unlearn.data.tokenization import ExampleTokenizer, TokenizedItem


def plan(n_forget=10, n_retain=25, n_alternate=0, batch_size=4, seed=0, epoch=0, lengths=None):
    return plan_epoch(n_forget, n_retain, n_alternate, batch_size=batch_size, seed=seed, epoch=epoch, lengths=lengths)


def steps(pairs, batch_size):
    return [pairs[at : at + batch_size] for at in range(0, len(pairs), batch_size)]


def partners(pairs):
    return {pair.forget: (pair.retain, pair.alternate) for pair in pairs}


def make_items(count, length=5):
    return [TokenizedItem(i, list(range(10, 10 + length)), 2) for i in range(count)]


# The plan of an epoch.


@pytest.mark.parametrize("lengths", [None, range(50)], ids=["random", "grouped"])
@pytest.mark.parametrize(("n_forget", "batch_size"), [(1, 1), (10, 4), (12, 4), (3, 8), (1, 32), (37, 5)])
def test_every_forget_item_counts_once_and_weights_average_one(n_forget, batch_size, lengths):
    pairs = plan(n_forget, batch_size=batch_size, lengths=lengths and lengths[:n_forget])
    assert len(pairs) == -(-n_forget // batch_size) * batch_size
    assert sorted(pair.forget for pair in pairs if pair.forget_weight > 0) == list(range(n_forget))
    for step in steps(pairs, batch_size):
        assert sum(pair.forget_weight for pair in step) / batch_size == pytest.approx(1.0)
        # Real rows of a step weigh the same: the weighted mean is their plain mean.
        assert len({pair.forget_weight for pair in step if pair.forget_weight}) == 1
    assert all(pair.forget_weight in (1.0, 0.0) for step in steps(pairs, batch_size)[:-1] for pair in step)


def test_rows_that_fill_up_have_weight_zero_and_real_partners():
    pairs = plan(n_forget=5, batch_size=4)
    assert [pair.forget_weight for pair in pairs] == [1, 1, 1, 1, 4, 0, 0, 0]
    by_item = partners(pairs[:5])
    assert all(by_item[pair.forget] == (pair.retain, None) for pair in pairs[5:])


def test_plan_is_a_pure_function_of_seed_and_epoch():
    torch.manual_seed(1)
    first = plan(seed=3, epoch=2)
    state = torch.get_rng_state()
    assert plan(seed=3, epoch=2) == first
    assert torch.equal(torch.get_rng_state(), state), "the global random state was used"
    torch.manual_seed(2)
    assert plan(seed=3, epoch=2) == first
    assert plan(seed=3, epoch=3) != first
    assert plan(seed=4, epoch=2) != first


def test_seeds_and_epochs_do_not_share_orders():
    orders = [
        tuple(pair.forget for pair in plan(40, seed=seed, epoch=epoch)) for seed in range(9) for epoch in range(9)
    ]
    assert len(set(orders)) == 81


def test_order_retain_and_alternate_are_independent_streams():
    pairs = plan(40, n_retain=40, n_alternate=40, batch_size=1)
    order, retain, alternate = zip(*((pair.forget, pair.retain, pair.alternate) for pair in pairs), strict=True)
    assert len({order, retain, alternate}) == 3


def test_partners_do_not_depend_on_batch_size_or_grouping():
    expected = partners(plan(37, n_retain=90, n_alternate=3, batch_size=1))
    for batch_size in (2, 4, 32, 64):
        assert partners(plan(37, n_retain=90, n_alternate=3, batch_size=batch_size)) == expected
    assert partners(plan(37, n_retain=90, n_alternate=3, batch_size=4, lengths=range(37))) == expected


def test_retain_items_do_not_repeat_until_all_were_used():
    drawn = [retain for retain, _ in partners(plan(n_forget=10, n_retain=25)).values()]
    assert len(set(drawn)) == 10
    counts = Counter(retain for retain, _ in partners(plan(n_forget=10, n_retain=4)).values())
    assert sorted(counts.values()) == [2, 2, 3, 3]
    alternates = Counter(alternate for _, alternate in partners(plan(n_forget=10, n_alternate=5)).values())
    assert sorted(alternates.values()) == [2] * 5


def test_epochs_draw_other_partners():
    draws = [partners(plan(n_forget=20, n_retain=300, epoch=epoch)) for epoch in range(2)]
    assert sum(draws[0][item] != draws[1][item] for item in range(20)) > 15


def test_without_retain_or_alternates():
    assert {(pair.retain, pair.alternate) for pair in plan(n_retain=0)} == {(None, None)}


def test_group_by_length_keeps_the_items_and_evens_the_steps():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 120, (203,), generator=generator).tolist()
    random, grouped = plan(203, batch_size=8), plan(203, batch_size=8, lengths=lengths)

    def real(pairs):
        return [pair.forget for pair in pairs if pair.forget_weight]

    def padded(pairs):
        return sum(8 * max(lengths[pair.forget] for pair in step) for step in steps(pairs, 8))

    assert sorted(real(grouped)) == sorted(real(random)) and real(grouped) != real(random)
    assert all(pair.forget_weight == 1.0 for pair in grouped[:200]), "only the last step may be filled up"
    assert padded(grouped) < 1.15 * sum(lengths) < padded(random)
    # Not sorted on the large scale: long and short steps are mixed.
    longest = [max(lengths[pair.forget] for pair in step) for step in steps(grouped[:200], 8)]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


# The data set and its sampler.


def test_dataset_rows():
    dataset = ForgetRetainDataset(make_items(3), make_items(4), [make_items(2)] * 3)
    row = dataset[Pair(2, 3, 1, 0.5, 0.25)]
    assert {name: (item.index, weight) for name, (item, weight) in row.items()} == {
        "forget": (2, 0.5),
        "retain": (3, 0.25),
        "alternate": (1, 0.5),
    }
    assert dataset.n_alternates == 2 and len(dataset) == 3
    bare = ForgetRetainDataset(make_items(3))
    assert bare[Pair(0, None, None, 1.0, 0.0)].keys() == {"forget"} and bare.n_alternates == 0


def test_dataset_errors():
    with pytest.raises(ValueError, match="forget set is empty.*--forget_split"):
        ForgetRetainDataset([])
    with pytest.raises(ValueError, match="2 lists of alternates were given for 3 forget items"):
        ForgetRetainDataset(make_items(3), (), [make_items(1)] * 2)


@pytest.mark.parametrize(
    ("partners", "said"),
    [
        ([[0], [1]], "2 lists of retain partners were given for 3 forget items"),
        ([[0], [], [1]], "Forget item 1 has no retain partner"),
        ([[0], [1], [3, 4]], "Forget item 2 has the retain partner 4, and there are 4 retain items"),
        ([[0], [-1], [1]], "Forget item 1 has the retain partner -1, and there are 4 retain items"),
    ],
)
def test_partners_that_training_could_not_find_are_refused_at_once(partners, said):
    with pytest.raises(ValueError, match=said) as raised:
        ForgetRetainDataset(make_items(3), make_items(4), partners=partners)
    assert "\n" not in str(raised.value)


def test_first_and_last_retain_item_may_be_partners():
    dataset = ForgetRetainDataset(make_items(2), make_items(4), partners=[[3, 0], [0]])
    met = [partners(PairSampler(dataset, batch_size=2, seed=0).plan(epoch)) for epoch in range(2)]
    assert met == [{0: (3, None), 1: (0, None)}, {0: (0, None), 1: (0, None)}]


def test_forget_end_token_false_drops_it_from_the_forget_items_alone():
    whole, cut = TokenizedItem(0, [5, 6, 7, 1], 2), TokenizedItem(1, [5, 6, 7, 8], 2, has_end=False)
    dataset = ForgetRetainDataset([whole, cut], [whole], [[whole], [whole]], forget_end_token=False)
    assert [item.input_ids for item in dataset.forget] == [[5, 6, 7], [5, 6, 7, 8]]
    assert not any(item.has_end for item in dataset.forget)
    assert dataset.retain[0].input_ids == dataset.alternate[0][0].input_ids == whole.input_ids == [5, 6, 7, 1]
    assert ForgetRetainDataset([whole]).forget[0] is whole


def test_sampler_yields_the_plan_of_its_epoch():
    dataset = ForgetRetainDataset(make_items(10), make_items(25), [make_items(3)] * 10)
    sampler = PairSampler(dataset, batch_size=4, seed=7)
    assert list(sampler) == plan(10, 25, 3, seed=7, epoch=0) == sampler.plan(0)
    sampler.set_epoch(5)
    assert list(sampler) == plan(10, 25, 3, seed=7, epoch=5)
    assert len(sampler) == len(list(sampler)) == 12


def test_sampler_groups_by_the_lengths_of_the_data_set():
    items = [TokenizedItem(i, [1] * (3 + 7 * i % 50), 1) for i in range(40)]
    dataset = ForgetRetainDataset(items)
    sampler = PairSampler(dataset, batch_size=4, seed=0, group_by_length=True)
    assert list(sampler) == plan(40, 0, lengths=[len(item.input_ids) for item in items])


@pytest.mark.parametrize("n_processes", [1, 2])
def test_accelerate_passes_the_epoch_on(n_processes):
    sampler = PairSampler(ForgetRetainDataset(make_items(8)), batch_size=4, seed=0)
    loader = DataLoader(sampler.dataset, batch_size=2, sampler=sampler, collate_fn=list)
    prepared = prepare_data_loader(loader, num_processes=n_processes, process_index=0, put_on_device=False)
    prepared.set_epoch(3)
    assert sampler.epoch == 3
    shown = [row["forget"][0].index for batch in prepared for row in batch]
    planned = [pair.forget for step in steps(sampler.plan(3), 2)[::n_processes] for pair in step]
    assert shown == planned


@pytest.mark.parametrize("n_forget", [16, 21, 3])
@pytest.mark.parametrize(("n_processes", "accumulation"), [(1, 1), (1, 8), (2, 1), (2, 4), (4, 2), (4, 1)])
def test_any_number_of_processes_takes_the_steps_of_one(n_forget, n_processes, accumulation):
    """The same rows in the same optimiser step, whether they come from processes, accumulation or one batch."""
    per_forward = 8 // (n_processes * accumulation)
    sampler = PairSampler(ForgetRetainDataset(make_items(n_forget), make_items(30)), batch_size=8, seed=1)
    together = [Counter() for _ in range(len(sampler) // 8)]
    for process in range(n_processes):
        batches = BatchSampler(sampler, per_forward, drop_last=False)
        shard = list(BatchSamplerShard(batches, n_processes, process, even_batches=True))
        assert len(shard) == len(together) * accumulation, "processes must take as many forwards each"
        for number, batch in enumerate(shard):
            together[number // accumulation].update(batch)
    assert together == [Counter(step) for step in steps(list(sampler), 8)]


# Batches.


def test_collate_writes_masks_and_labels_from_lengths_where_pad_is_the_end_token():
    end = 1
    items = [TokenizedItem(4, [7, 8, 9, end], 2), TokenizedItem(2, [7, end, 9, 9, 9, end], 3)]
    half = collate(items, pad_id=end, weights=[0.5, 0.0])
    assert half["input_ids"].tolist() == [[7, 8, 9, end, end, end], [7, end, 9, 9, 9, end]]
    assert half["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert half["labels"].tolist() == [[-100, -100, 9, end, -100, -100], [-100, -100, -100, 9, 9, end]]
    assert half["index"].tolist() == [4, 2]
    assert half["weight"].tolist() == [0.5, 0.0] and half["weight"].dtype == torch.float32
    assert {half[key].dtype for key in ("input_ids", "attention_mask", "labels", "index")} == {torch.int64}


def test_collate_scores_all_of_a_plain_text():
    half = collate([TokenizedItem(0, [5, 6, 1], prompt_length=0)], pad_id=0)
    assert half["labels"].tolist() == [[5, 6, 1]] and half["weight"].tolist() == [1.0]


def test_collator_gives_each_half_its_own_length_and_the_same_weights():
    tokenizer = ExampleTokenizer(tiny_tokenizer())
    forget, retain = tokenizer.all(tiny_rows(4)), tokenizer.all(tiny_rows(4, first=4))
    alternate = [tokenizer.all([{**row, "answer": "I do not know"}]) for row in tiny_rows(4)]
    dataset = ForgetRetainDataset(forget, retain, alternate)
    pairs = PairSampler(dataset, batch_size=3, seed=0).plan(0)[3:]
    batch = DataCollatorForUnlearning()([dataset[pair] for pair in pairs])
    assert batch.keys() == {"forget", "retain", "alternate"}
    for name, half in batch.items():
        assert half["weight"].tolist() == [3.0, 0.0, 0.0]
        assert half["index"].tolist() == [getattr(pair, name) for pair in pairs]
        assert half["input_ids"].shape == half["labels"].shape == half["attention_mask"].shape
        assert half["attention_mask"].sum(-1).max() == half["input_ids"].shape[1]
    lengths = [len(forget[pair.forget].input_ids) for pair in pairs]
    assert batch["forget"]["attention_mask"].sum(-1).tolist() == lengths
