"""What sites have in common of a teacher: the tensors that train, by name, and which of them are norms."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tskd.engine.fit import running_statistics
from tskd.errors import UserError
from tskd.models.fitting import compare_tensors
from tskd.models.lora import trainable_names
from tskd.models.registry import adapt, build_model
from tskd.seeding import derive
from tskd.stages.teacher import TeacherSource
from tskd.types import StepFn

Tensors = Mapping[str, Tensor]


def new_teacher(source: TeacherSource, seed: int) -> nn.Module:
    """Return the base model as every site begins with it: adapted, what is random drawn from the seed."""
    torch.manual_seed(derive(seed, "teacher"))
    model = build_model(source.description)
    adapt(model, source.description)
    return model


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all that training changes, on the CPU: trained parameters and running statistics of norms."""
    parameters = dict(model.named_parameters())
    live = {name: parameters[name] for name in trainable_names(model)} | running_statistics(model)
    return {name: live[name].detach().cpu().clone() for name in sorted(live)}


def norm_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the trained tensors that belong to a norm of any kind, by the names of their modules."""
    norms = {place for place, module in model.named_modules() if "norm" in type(module).__name__.lower()}
    return frozenset(name for name in trained_tensors(model) if name.rpartition(".")[0] in norms)


def put(model: nn.Module, tensors: Tensors) -> None:
    """Write tensors into the model in place; UserError lists those that it has not, or in another shape."""
    own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name in tensors}
    misfit = compare_tensors(dict(tensors), {name: own[name] for name in own})
    if any(misfit):
        raise UserError(f"These tensors do not belong to this teacher: {misfit}. All sites need the same recipe.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def near(step: StepFn, model: nn.Module, weight: float) -> StepFn:
    """Return the step with FedProx's term: ``weight`` / 2 times the squared distance of what trains to what it is now.

    Source: Li et al. 2020 (arXiv 1812.06127), equation 2.
    """
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
    begun = [tensor.detach().clone() for tensor in trained]

    def nearer(module: nn.Module, batch: object) -> Mapping[str, Tensor]:
        losses = dict(step(module, batch))  # type: ignore[arg-type]
        distance = torch.stack([(now - before.to(now)).square().sum() for now, before in zip(trained, begun)]).sum()
        return losses | {"loss": losses["loss"] + weight / 2 * distance, "distance": distance.detach()}

    return nearer


def digest_of(tensors: Tensors) -> str:
    """Return a sha256 of tensors: names, shapes and every bit."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}\n".encode())
        whole.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def without(tensors: Tensors, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors but for the named ones."""
    left_out = set(names)
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}
