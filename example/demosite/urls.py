from django.http import HttpResponse
from django.urls import include, path


def ready(request):
    """Answer without the database."""
    return HttpResponse("ready", content_type="text/plain")


urlpatterns = [
    path("ready/", ready),
    path("", include("guestbook.urls")),
]
