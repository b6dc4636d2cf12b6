import asyncio
import time

from asgiref.sync import sync_to_async

from django.db import transaction
from django.db.models import Sum
from django.http import JsonResponse
from django.shortcuts import aget_object_or_404, get_object_or_404
from django.utils import timezone
from django.views.decorators.http import require_POST

from .models import Guest

# What the slow views do between their queries: a call to another service, a
# template that takes its time, a client that reads slowly.
PAUSE_SECONDS = 0.02


def record_visit(pk):
    """Count a visit and return the guest, or None if there is no such one."""
    with transaction.atomic():
        guest = Guest.objects.select_for_update().filter(pk=pk).first()
        if guest is not None:
            guest.visits += 1
            guest.last_visit = timezone.now()
            guest.save(update_fields=["visits", "last_visit"])
    return guest


def visit_response(guest):
    if guest is None:
        return JsonResponse({"error": "No such guest."}, status=404)
    return JsonResponse(guest.as_dict())


def guests(request):
    """One query."""
    return JsonResponse({"guests": [g.as_dict() for g in Guest.objects.all()[:10]]})


@require_POST
def visit(request, pk):
    """A read and a write in a transaction."""
    return visit_response(record_visit(pk))


def slow(request, pk):
    """A query, a pause, and another query."""
    guest = get_object_or_404(Guest, pk=pk)
    time.sleep(PAUSE_SECONDS)
    total = Guest.objects.aggregate(total=Sum("visits"))["total"]
    return JsonResponse({**guest.as_dict(), "of": total})


async def aguests(request):
    return JsonResponse(
        {"guests": [g.as_dict() async for g in Guest.objects.all()[:10]]}
    )


@require_POST
async def avisit(request, pk):
    # Django has no asynchronous transactions.
    return visit_response(await sync_to_async(record_visit)(pk))


async def aslow(request, pk):
    guest = await aget_object_or_404(Guest, pk=pk)
    await asyncio.sleep(PAUSE_SECONDS)
    total = (await Guest.objects.aaggregate(total=Sum("visits")))["total"]
    return JsonResponse({**guest.as_dict(), "of": total})
