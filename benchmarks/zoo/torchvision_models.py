"""Models of torchvision, small ones, with random weights."""

from __future__ import annotations

import torchvision_ops  # noqa: F401 - before what imports torchvision

# isort: split
from collections.abc import Callable
from typing import Any

import torch
from ingredients import mean_square, normals, pixels, zoo_model
from torch import nn
from torchvision import models
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from gpubench.workloads.workload import Batch, Options, Workload

_SIZE = 96


class _Images(nn.Module):
    """Gives a detector the list of images that it wants."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> Any:
        return self.model(list(images))


def _fpn() -> BackboneWithFPN:
    resnet = models.resnet18(weights=None)
    return BackboneWithFPN(resnet, {"layer3": "0", "layer4": "1"}, [256, 512], 64)


def _anchors() -> AnchorGenerator:
    return AnchorGenerator(((24,), (48,), (96,)), ((0.5, 1.0, 2.0),) * 3)


def retinanet() -> Workload:
    """Boxes sorted by a score, of which random weights make many that are nearly alike."""

    def build() -> nn.Module:
        head = models.detection.retinanet.RetinaNetHead(64, 3, 5)
        nn.init.normal_(head.classification_head.cls_logits.weight, std=0.2)
        nn.init.constant_(head.classification_head.cls_logits.bias, -1.0)
        detector = models.detection.RetinaNet(
            _fpn(),
            num_classes=5,
            min_size=_SIZE,
            max_size=_SIZE,
            anchor_generator=_anchors(),
            head=head,
            detections_per_img=20,
            topk_candidates=50,
        )
        return _Images(detector)

    return zoo_model("torchvision-retinanet", build, pixels(3, _SIZE, _SIZE), compare="set")


def faster_rcnn() -> Workload:
    """Two stages that select, suppress and sort; its first stage's choice decides what the second sees."""

    def build() -> nn.Module:
        detector = models.detection.FasterRCNN(
            _fpn(),
            num_classes=5,
            min_size=_SIZE,
            max_size=_SIZE,
            rpn_anchor_generator=_anchors(),
            rpn_pre_nms_top_n_test=50,
            rpn_post_nms_top_n_test=20,
            box_detections_per_img=10,
        )
        return _Images(detector)

    return zoo_model("torchvision-faster-rcnn", build, pixels(3, _SIZE, _SIZE), compare="set")


def no_detections() -> Workload:
    """A detector that finds nothing: every output is empty."""

    def build() -> nn.Module:
        return _Images(
            models.detection.ssdlite320_mobilenet_v3_large(
                weights=None, weights_backbone=None, num_classes=3, score_thresh=0.99
            )
        )

    return zoo_model("torchvision-no-detections", build, pixels(3, 160, 160))


def segmentation() -> Workload:
    """An ordered mapping of maps, dilated convolutions and resizing."""

    def build() -> nn.Module:
        return models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        return mean_square(model(*batch)["out"])

    return zoo_model("torchvision-segmentation", build, normals((3, 64, 64)), loss=loss)


def class_map() -> Workload:
    """Whole numbers alone: the class of every pixel, which near-ties may swap."""

    def build() -> nn.Module:
        return models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)

    def infer(model: nn.Module, batch: Batch, options: Options) -> torch.Tensor:
        return model(*batch)["out"].argmax(1).to(torch.uint8)

    return zoo_model("torchvision-class-map", build, normals((3, 64, 64)), infer=infer)


def video() -> Workload:
    """3-D convolutions at several frames."""
    stem = models.video.resnet.BasicStem

    def build() -> nn.Module:
        return models.video.VideoResNet(
            block=models.video.resnet.BasicBlock,
            conv_makers=[models.video.resnet.Conv3DSimple] * 4,
            layers=[1, 1, 1, 1],
            stem=stem,
            num_classes=10,
        )

    return zoo_model("torchvision-video", build, normals((3, 4, 32, 32)))


def _plain(name: str, make: Callable[[], nn.Module], *, trains: bool = False, size: int = 64) -> Workload:
    return zoo_model(f"torchvision-{name}", make, normals((3, size, size)), trains=trains)


def densenet() -> Workload:
    """Concatenations of many small feature maps."""
    return _plain("densenet", lambda: models.DenseNet(12, (2, 2, 2, 2), 32, num_classes=10))


def shufflenet() -> Workload:
    """Channels shuffled by views and transpositions, which lose a layout."""
    return _plain("shufflenet", lambda: models.shufflenet_v2_x0_5(weights=None, num_classes=10), trains=True)


def attention_fast_path() -> Workload:
    """`nn.MultiheadAttention` with projections in one matrix; inference may take torch's own fast path."""
    return _plain(
        "vision-transformer",
        lambda: models.VisionTransformer(64, 16, 2, 4, 96, 192, num_classes=10),
        trains=True,
    )


def two_heads() -> Workload:
    """In training three outputs, one main and two auxiliary."""

    def build() -> nn.Module:
        return models.GoogLeNet(num_classes=10, aux_logits=True, init_weights=False, dropout=0.0, dropout_aux=0.0)

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        outputs = model(*batch)
        return mean_square(outputs.logits) + 0.3 * (mean_square(outputs.aux_logits1) + mean_square(outputs.aux_logits2))

    return zoo_model("torchvision-two-heads", build, normals((3, 64, 64)), loss=loss)
