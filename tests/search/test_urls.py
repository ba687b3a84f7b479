from __future__ import annotations

import pytest

from strop.search.urls import hide_secrets


@pytest.mark.parametrize(
    ('url', 'shown'),
    [
        ('postgresql://ada:s3cret@db/trials', 'postgresql://ada:***@db/trials'),
        ('postgresql+psycopg://ada:s3cret@db:5432/trials', 'postgresql+psycopg://ada:***@db:5432/trials'),
        ('mysql+pymysql://ada:p%40ss@[::1]:3306/trials?charset=utf8', 'mysql+pymysql://ada:***@[::1]:3306/trials?charset=utf8'),
        ('redis://:s3cret@cache:6379/0', 'redis://:***@cache:6379/0'),
        ('postgresql://ada:s3@cret@db/trials', 'postgresql://ada:***@db/trials'),
        ('postgresql://db/trials?user=ada&password=s3cret', 'postgresql://db/trials?user=ada&password=***'),
        ('postgresql://db/trials?sslpassword=s3cret&x=1', 'postgresql://db/trials?sslpassword=***&x=1'),
        ('host=db dbname=trials password=s3cret', 'host=db dbname=trials password=***'),
        ("{'PGPASSWORD': 's3cret', 'PGUSER': 'ada'}", "{'PGPASSWORD': ***, 'PGUSER': 'ada'}"),
        ('postgresql://ada:s3/cret@db/trials', 'postgresql://ada:***@db/trials'),
        ("postgresql://ada:s3'cret@db/trials", 'postgresql://ada:***@db/trials'),
        ('postgresql://ada:s3"cret@db/trials', 'postgresql://ada:***@db/trials'),
        ("host=db password='s3 cret' user=ada", 'host=db password=*** user=ada'),
        ("{'user': 'ada', 'password': 's3cret'}", "{'user': 'ada', 'password': ***}"),
        ('PGPASSWORD=s3cret python trial.py', 'PGPASSWORD=*** python trial.py'),
    ],
)
def test_the_password_is_hidden_and_the_rest_stays(url: str, shown: str) -> None:
    assert hide_secrets(url) == shown


@pytest.mark.parametrize(
    'text',
    [
        'sqlite:///search.db',
        'http://127.0.0.1:8080/dashboard',
        'runs/search.journal',
        'ratio 3:4 @ 5',
        'a://b/c:d@e',
        'the password: none',
        '',
    ],
)
def test_a_text_without_a_password_is_left_alone(text: str) -> None:
    assert hide_secrets(text) == text


def test_every_url_of_a_long_text_is_cleaned() -> None:
    text = 'first postgresql://a:one@x/y, "mysql://b:two@z/w"\nthen (postgresql://c:three@u/v)'
    shown = hide_secrets(text)
    assert not any(word in shown for word in ('one', 'two', 'three'))
    assert shown.count('***') == 3
