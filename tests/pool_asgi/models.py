from django.db import models


class NumberRow(models.Model):
    number = models.IntegerField()

    class Meta:
        # The table is part of each PrivateDatabase.
        managed = False
