"""Where the teacher's signal comes from."""

from stillhouse.teacher.live import LiveTeacher
from stillhouse.teacher.shard import elements, held, shard
from stillhouse.teacher.zero import shard_by_zero

__all__ = ["LiveTeacher", "elements", "held", "shard", "shard_by_zero"]
