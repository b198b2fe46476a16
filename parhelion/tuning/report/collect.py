"""The report out of packs, benchmarks' results and a compile matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parhelion.packs.format import Pack
from parhelion.tuning.report.data import Figure, Gap, Report, Source
from parhelion.tuning.report.figures import figures_of
from parhelion.tuning.report.from_pack import pack_cost, pack_gaps, pack_samples, pack_source
from parhelion.tuning.report.from_results import Results, read_results
from parhelion.tuning.report.matrix_file import read_matrix
from parhelion.tuning.report.portability import scores


def make_report(packs: Sequence[Pack], results: Path | None = None, matrix: Path | None = None) -> Report:
    """Read and compute everything. Packs come first, so where a device has several sources they count.

    Args:
        results: a folder of benchmarks' results.
        matrix: a file; see ``read_matrix``.

    Raises:
        ConfigError: ``results`` or ``matrix`` is not what it should be.
    """
    read = read_results(results) if results is not None else Results((), ())
    sources: list[Source] = []
    figures: list[Figure] = []
    gaps: list[Gap] = []
    for pack in packs:
        sources.append(pack_source(pack))
        figures += figures_of(sources[-1], pack_samples(pack))
        gaps += pack_gaps(pack)
    for result in read.results:
        sources.append(result.source)
        figures += figures_of(result.source, result.samples)
        gaps += result.gaps
    return Report(
        sources=tuple(sources),
        figures=tuple(figures),
        gaps=tuple(gaps),
        costs=tuple(map(pack_cost, packs)),
        matrix=read_matrix(matrix) if matrix is not None else None,
        scores=scores(figures),
        skipped=read.skipped,
    )
