"""A sweep through an approximate index: which pictures of a large catalogue are worth an exact look.

    originals' garments ─▶ index: ``index.candidates`` each ─▶ their pictures, and the background's ─▶ match

The pair search then sees a catalogue of these pictures alone. Its answers are exact but for partners that the
index did not give; the share of those is estimated on a sample of the originals.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit import audit
from pipeline.calibration import list_threshold
from pipeline.garment_index import GarmentIndex, as_queries, open_index
from pipeline.rundir import RunDirectory
from pipeline.settings import Settings
from psnet.verdict import Calibration

if TYPE_CHECKING:
    from pipeline.match import Members
    from pipeline.vectors import Vectors


def narrowed(
    run: RunDirectory, members: Members, settings: Settings, calibration: Calibration
) -> tuple[Members, list[Vectors], dict[str, Any]]:
    """``members`` with the pictures that an exact search needs to see, where their garments' vectors are, and
    what run.json shall say.

    Memory O(garments) for a few numbers each, O(queries × candidates).

    Raises:
        UserError: see ``open_index``.
    """
    index = open_index(run)
    query_pictures = pc.unique(members.picture.filter(pa.array(members.is_query)))
    partner_pictures = pc.unique(members.picture.filter(pa.array(members.is_partner)))
    asked = rows_of(index, query_pictures)
    allowed = rows_of(index, partner_pictures)
    queries = index.gather(
        np.repeat(np.arange(len(asked)), [len(rows) for rows in asked]),
        np.concatenate([*asked, np.empty(0, np.int64)]),
    )
    chosen = settings.match
    questions = as_queries(queries, calibration.weights, mirrored=chosen.mirrored)
    found = index.candidates(questions, settings.index.candidates, scoring=chosen.scoring, allowed=allowed)
    seen = [query_pictures, *_pictures(index, found.shard, found.row)]
    seen += _pictures(index, *index.background_sample(chosen.background_size, allowed))
    wanted = pc.unique(pa.concat_arrays(seen))
    threshold = list_threshold(calibration, chosen)
    missed = audit(
        index,
        questions,
        queries.sha256,
        found,
        settings.index.audit_queries,
        scoring=chosen.scoring,
        threshold=threshold,
        allowed=allowed,
    )
    pictures = members.pictures.filter(pc.is_in(members.pictures, value_set=wanted))
    said = {"candidate_pictures": len(pictures), "missed": missed}
    return replace(members, pictures=pictures), [shard.vectors for shard in index.shards], said


def rows_of(index: GarmentIndex, pictures: pa.Array) -> list[np.ndarray]:
    """Per shard the rows that show one of these pictures."""
    # Asked once for all shards: the set of pictures may be as large as the index.
    names = pa.concat_arrays([shard.vectors.sha256 for shard in index.shards])
    is_in = np.asarray(pc.is_in(names, value_set=pictures))
    ends = np.cumsum([len(shard.vectors) for shard in index.shards])
    return [np.flatnonzero(part) for part in np.split(is_in, ends[:-1])]


def _pictures(index: GarmentIndex, shard: np.ndarray, row: np.ndarray) -> list[pa.Array]:
    return [
        index.shards[number].vectors.sha256.take(np.unique(row[shard == number]))
        for number in np.unique(shard)
    ]
