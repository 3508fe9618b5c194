"""What the shift book keeps."""

from django.db import models


class Visit(models.Model):
    """A note that somebody left."""

    when = models.DateTimeField(auto_now_add=True)
    who = models.CharField(max_length=150)
    note = models.CharField(max_length=200)

    class Meta:
        ordering = ["-when"]

    def __str__(self):
        return f"{self.who}: {self.note}"
