"""From a checkpoint to an ONNX file with metadata, accepted only when it agrees with the checkpoint."""

import warnings
from dataclasses import replace
from typing import Any

import onnx
import torch

from segforge.architectures import require_size, wrap_for_inference
from segforge.config import METRIC_OF_TASK, NetworkConfig
from segforge.datasets.base import load_index
from segforge.errors import SegforgeError
from segforge.files import atomic_file, read_json, sha256_file, write_json
from segforge.layout import VariantPaths
from segforge.onnx.graph import output_names, outputs_of, require_interface, strip_traces
from segforge.onnx.metadata import OnnxMetadata, embed_metadata, save_onnx
from segforge.onnx.parity import SCORE_BATCH, check_parity, check_samples, require_score
from segforge.progress import say
from segforge.runtimes import onnx_runner, open_runner
from segforge.scores.evaluate import score_runner
from segforge.training.checkpoint import load_checkpoint, network_options, things_of


def export(config: NetworkConfig) -> None:
    """Write `model.onnx` and its scores beside the checkpoint's.

    The file takes `images` [batch, …] and gives `ids` uint8 [batch, height, width], `logits` float32,
    or what a panoptic network gives; the batch is dynamic. Raises `SegforgeError`, and writes nothing,
    when its outputs on real images (never of the scored split) differ from the checkpoint's by more
    than `export.tolerance`, or when its score does.
    """
    paths = VariantPaths(config.variant)
    say(f"export: {paths.checkpoint} -> {paths.onnx}")
    network = load_checkpoint(paths.checkpoint, config)
    checkpoint = read_json(paths.checkpoint / "checkpoint.json", made_by=paths.command("train"))
    metadata = describe(config, checkpoint)
    model = convert(network, metadata)
    metadata = replace(metadata, outputs=outputs_of(model))
    embed_metadata(model, metadata)
    require_interface(model, metadata, paths.onnx)
    scored = load_index(metadata.dataset).split(metadata.task, metadata.score_split)
    batch = min(SCORE_BATCH, metadata.batch_max)
    with atomic_file(paths.onnx) as temporary:
        save_onnx(model, temporary)
        weights = paths.checkpoint / "best.safetensors"
        opened = open_runner("torch", weights, metadata, precision="fp32", threads=0)
        with opened as reference, onnx_runner(temporary) as candidate:
            samples, tolerance = check_samples(config), config.export.tolerance
            mismatch = check_parity(reference, candidate, metadata, samples, config.export.check_batches, tolerance)
            before = score_runner(reference, metadata, scored, batch).result["score"]
            after = score_runner(candidate, metadata, scored, batch).result["score"]
        require_score("the exported graph", after, before, tolerance, hint="another export.opset")
        figures = {
            "metric": METRIC_OF_TASK[metadata.task],
            "checkpoint": before,
            "onnx": after,
            "checkpoint_sha256": metadata.checkpoint_sha256,
            "onnx_sha256": sha256_file(temporary),
            "max_mismatch": mismatch,
        }
    write_json(paths.metrics("export"), figures)
    say(f"export: {figures['metric']} {before:.4f} in PyTorch, {after:.4f} in ONNX; {mismatch:.6f} of outputs differ")


def describe(config: NetworkConfig, checkpoint: dict[str, Any]) -> OnnxMetadata:
    """What the ONNX file will say about itself, from the config and `checkpoint.json`.

    Raises `SegforgeError` where the config feeds the network otherwise than it was trained, or images
    of a size that it cannot take.
    """
    model, dataset, source = config.model, config.dataset, config.recipe.input
    require_size(model.name, model.builder, source.height, source.width, "recipe.input")
    fed = {"colour_order": source.colour_order, "mean": list(source.mean), "std": list(source.std)}
    trained = {key: checkpoint["input"][key] for key in fed}
    if fed != trained:
        raise SegforgeError(
            f"recipe.input is {fed}",
            expected=f"{trained}, as the checkpoint was trained",
            hint=VariantPaths(config.variant).command("train"),
        )
    pixels = model.task != "classification"
    return OnnxMetadata(
        variant=config.variant,
        model=model.name,
        architecture=model.builder,
        backbone=config.backbone.name,
        options=network_options(config),
        dataset=dataset.name,
        task=model.task,
        classes=checkpoint["classes"],
        things=things_of(config),
        colours=[list(colour) for colour in dataset.colours] if pixels else [],
        void=dataset.void,
        void_rule=dataset.void_rule,
        score_split=config.recipe.score_split,
        height=source.height,
        width=source.width,
        output_height=(dataset.height or source.height) if pixels else 0,
        output_width=(dataset.width or source.width) if pixels else 0,
        colour_order=source.colour_order,
        mean=list(source.mean),
        std=list(source.std),
        input_layout=config.export.input_layout,
        tail=config.export.tail,
        resize=config.export.resize,
        outputs=[],  # as the exporter gives them
        batch_min=config.export.batch_min,
        batch_max=config.export.batch_max,
        opset=config.export.opset,
        checkpoint_sha256=checkpoint["sha256"],
        train_images=sorted(checkpoint["train_images"]),
    )


def convert(network: torch.nn.Module, metadata: OnnxMetadata) -> onnx.ModelProto:
    """The network with its inference tail as ONNX; the same network gives the same bytes.

    Raises `SegforgeError` when the exporter fails or writes another opset than asked for.
    """
    m = metadata
    wrapped = wrap_for_inference(
        network, m.task, m.tail, m.output_height, m.output_width, m.input_layout, m.mean, m.std, m.resize
    )
    # An example batch of 1 would be taken for a constant.
    batch = max(m.batch_min, 2) if m.batch_max > 1 else 1
    if m.input_layout == "nhwc_uint8":
        images = torch.zeros(batch, m.height, m.width, 3, dtype=torch.uint8)
    else:
        images = torch.zeros(batch, 3, m.height, m.width)
    dynamic = None
    if m.batch_max > m.batch_min:
        dynamic = ({0: torch.export.Dim("batch", min=m.batch_min, max=m.batch_max)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        try:
            program = torch.onnx.export(
                wrapped,
                (images,),
                dynamo=True,
                opset_version=m.opset,
                dynamic_shapes=dynamic,
                external_data=False,
                input_names=["images"],
                output_names=output_names(m),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise SegforgeError(
                f"the exporter cannot convert {m.model} on {m.backbone} at {m.height}x{m.width}: "
                f"{error.__cause__ or error}",
                hint="another recipe.input, export.opset or export.batch_max",
            ) from error
    assert program is not None
    model = program.model_proto
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if written != m.opset:
        raise SegforgeError(f"the exporter wrote opset {written}", expected=f"opset {m.opset}", hint="export.opset=20")
    strip_traces(model)
    return model
