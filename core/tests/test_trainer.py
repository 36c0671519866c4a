import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from headwater.trainer import reduce_gradients
from torch import nn

# Items of two ranks, unequally many; the last parameter gets a gradient on no rank.
SHARES = (torch.tensor([1.0, 2.0, 4.0]), torch.tensor([-3.0]))


def parameters():
    return [
        nn.Parameter(torch.tensor([2.0, -1.0])),
        nn.Parameter(torch.tensor(0.5)),
        nn.Parameter(torch.ones(2)),
    ]


def loss_of(items, a, b):
    """The mean over ``items``; ``b`` counts for positive ones only, so one rank has no gradient for it."""
    loss = (items[:, None] * a).square().sum(1).mean()
    positive = items[items > 0]
    return loss + (positive * b).sum() / len(items) if len(positive) else loss


def one_rank(rank, address, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    a, b, unused = parameters()
    loss_of(SHARES[rank], a, b).backward()
    assert (b.grad is None) == (rank == 1)
    reduce_gradients([a, b, unused], weight=len(SHARES[rank]))
    torch.save([a.grad, b.grad, unused.grad], folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_gradients_on_two_ranks_equal_those_of_the_joint_batch_in_one_process(tmp_path):
    address = f"file://{tmp_path / 'meeting'}"
    torch.multiprocessing.spawn(one_rank, (address, tmp_path), nprocs=2)
    a, b, _ = parameters()
    loss_of(torch.cat(SHARES), a, b).backward()
    for rank in (0, 1):
        grad_a, grad_b, unused = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(grad_a, a.grad, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(grad_b, b.grad, rtol=1e-6, atol=1e-6)
        assert unused is None


def test_no_parameters_need_no_communication():
    reduce_gradients([], weight=1.0)


@pytest.mark.parametrize("name", ["double", "mixed"])
def test_update_clips_the_norm_over_all_parameters(name):
    from toy import ToyTrainer

    trainer = ToyTrainer.__new__(ToyTrainer)
    dtype = torch.float64 if name == "double" else torch.float32
    p = nn.Parameter(torch.zeros(2, dtype=dtype))
    trainer.place = type("Alone", (), {"world": 1})
    trainer.optimisers, trainer.schedulers = {"sgd": torch.optim.SGD([p], lr=1.0)}, {}
    trainer.clip_norm = 1.0
    trainer.update((p * torch.tensor([3.0, 4.0], dtype=dtype)).sum())
    torch.testing.assert_close(p.detach(), torch.tensor([-0.6, -0.8], dtype=dtype), rtol=1e-5, atol=1e-5)
    assert p.grad is None
