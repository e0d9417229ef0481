"""The job behind `projclust expand`: a compressed checkpoint in, a stock dense one out."""

from pathlib import Path

from projclust.checkpoints.card import expanded_card
from projclust.checkpoints.folder import check_space, new_folder, write_options
from projclust.checkpoints.load import load_checkpoint
from projclust.checkpoints.save import bytes_to_save, copy_side_files, save_checkpoint
from projclust.checkpoints.source import CONFIG, is_static, quantization_method, read_json, resolve_checkpoint
from projclust.checkpoints.static import write_static
from projclust.checkpoints.tensors import stored_tensors, weight_files
from projclust.errors import ProjclustError
from projclust.hf.stored import check_digest
from projclust.jobs.options import ExpandOptions
from projclust.results.reports import ExpandReport
from projclust.tables import CompressedTable


def expand_checkpoint(options: ExpandOptions) -> ExpandReport:
    """Write the dense twin of a compressed checkpoint.

    Raises:
        ProjclustError: a user's mistake, or an obstacle that a user can mend; nothing is left behind.
    """
    output = Path(options.output)
    options.check_folder()
    source = resolve_checkpoint(options.path, options.revision)
    config = read_json(source / CONFIG)
    if quantization_method(config) != "projclust":
        raise ProjclustError(f"{options.path} is not compressed by projclust: there is nothing to expand")
    loaded = load_checkpoint(source)
    table = loaded.model.get_input_embeddings()
    # What was made from the config of a compressed model is dense, and is written with a config that says so.
    if isinstance(table, CompressedTable):
        check_digest(weight_files(source), config["quantization_config"].get("sha256"), table.shape)
        loaded.model.dequantize()
    check_space(output, bytes_to_save(loaded))
    with new_folder(output, options.overwrite) as folder:
        copy_side_files(source, folder)
        save_checkpoint(loaded, folder)
        if is_static(config):
            write_static(source, folder)
        (folder / "README.md").write_text(expanded_card(options.path, source), encoding="utf-8")
        write_options(folder, options)
        after = stored_tensors(folder)
    return ExpandReport(
        options.path,
        options.output,
        model_bytes_stored=sum(tensor.bytes for tensor in stored_tensors(source).values()),
        model_bytes_dense=sum(tensor.bytes for tensor in after.values()),
    )
