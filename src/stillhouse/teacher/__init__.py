"""Where the teacher's signal comes from."""

from stillhouse.teacher.live import LiveTeacher

__all__ = ["LiveTeacher"]
