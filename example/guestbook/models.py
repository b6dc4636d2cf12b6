from django.db import models


class Guest(models.Model):
    name = models.CharField(max_length=100)
    visits = models.PositiveIntegerField(default=0)
    last_visit = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-visits", "pk"]

    def __str__(self):
        return self.name

    def as_dict(self):
        return {"pk": self.pk, "name": self.name, "visits": self.visits}
