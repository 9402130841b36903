"""What a distilled student is held against: U-Nets, and a student that teaches itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tskd.artifacts import Artifact
from tskd.experiment.budget import at_most, lasting, network_flops
from tskd.models.description import NetworkDescription
from tskd.recipe.schema import ControlConfig, Mix, UnetConfig, UnetImagenetConfig
from tskd.stages import control, self_training, transfer_masks, unets

if TYPE_CHECKING:
    from tskd.experiment.run import Run


@dataclass
class Baselines:
    """Models of a run that are trained in one go; with the student's compute, unless their settings say otherwise."""

    run: Run

    def self_trained(self, mix: Mix) -> Artifact:
        """The student that has learned from the labels and from its own average on the transfer set."""
        run = self.run
        config = at_most(run.recipe.self_training, run.budget.total, run.budget.flops_per_image)
        return self_training.build(run.bench, config, mix, run.student_description, run.transfer, run.prepared_artifact)

    @cached_property
    def control(self) -> Artifact:
        """The U-Net that sees the labels alone."""
        return control.build(self.run.bench, *self._control)

    @cached_property
    def control_pseudo(self) -> Artifact:
        """The U-Net that sees the labels and the teacher's hard masks on the transfer set."""
        run, masks = self.run, self.run.initialisations.pseudo_masks
        return control.build(
            run.bench, *self._control,
            lambda: transfer_masks.labels_and_pseudo_labels(run.prepared, run.transfer_set, masks.path),
            inputs={"masks": masks.digest, "transfer": run.transfer.digest},
        )  # fmt: skip

    @cached_property
    def unet(self) -> Artifact:
        """The U-Net of nnU-Net's size that sees the labels alone."""
        config = self.run.recipe.unet
        return self._unet("unet", config, unets.describe_unet(config, **self._sizes))

    @cached_property
    def unet_imagenet(self) -> Artifact:
        """The U-Net over an encoder with ImageNet weights that sees the labels alone."""
        config = self.run.recipe.unet_imagenet
        return self._unet("unet_imagenet", config, unets.describe_unet_imagenet(config, **self._sizes))

    @property
    def _control(self) -> tuple[ControlConfig, NetworkDescription, Artifact]:
        """The U-Net's settings, as long as the student's compute allows, its description, and the data."""
        config = self.run.recipe.control
        description = control.describe(config, **self._sizes)
        config = at_most(config, self.run.budget.total, network_flops(description))
        return config, description, self.run.prepared_artifact

    def _unet(
        self, stage: unets.Stage, config: UnetConfig | UnetImagenetConfig, description: NetworkDescription
    ) -> Artifact:
        if config.compute == "equal":
            config = lasting(config, self.run.budget.total, network_flops(description))
        return unets.build(self.run.bench, stage, config, description, self.run.prepared_artifact)

    @property
    def _sizes(self) -> dict[str, Any]:
        return {"classes": self.run.prepared.classes, "image_size": self.run.prepared.image_size}
