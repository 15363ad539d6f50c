"""Where the teacher's signal comes from."""

from stillhouse.teacher.live import LiveTeacher
from stillhouse.teacher.shard import shard

__all__ = ["LiveTeacher", "shard"]
