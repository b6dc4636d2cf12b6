from django.db import connection, transaction
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt

from .models import Book


def count(request):
    return JsonResponse({"count": Book.objects.count()})


async def count_async(request):
    return JsonResponse({"count": await Book.objects.acount()})


@csrf_exempt
@transaction.atomic
def add(request, title):
    book = Book.objects.create(title=title)
    return JsonResponse({"pk": book.pk})


def broken(request):
    """Fail in the middle of a transaction, after a statement that failed."""
    with transaction.atomic():
        Book.objects.create(title="Twice")
        Book.objects.create(title="Twice")


def stream(request):
    titles = Book.objects.order_by("title").values_list("title", flat=True)
    return StreamingHttpResponse("%s\n" % title for title in titles.iterator())


def session(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    name = connection.settings_dict["NAME"]
    return HttpResponse("%d %s" % (request.session["visits"], name))
