"""A small shop whose main job is to register people: every mode of transact, each in a file of its own.

Read in this order:

1. ``tables.py``        users, profiles, products, orders; every constraint has a name
2. ``database.py``      the one ``Database``, from the environment
3. ``app.py``           the application, and what it says when a constraint is broken
4. ``users.py``         automatic mode: the request is the transaction
5. ``registration.py``  decorator mode: a service function is the transaction
6. ``orders.py``        manual mode: the route begins, commits and rolls back
7. ``products.py``      connection mode: automatic, without the ORM

Beside them: ``schemas.py`` (what clients send and get), ``problems.py`` (error bodies), ``migrate.py`` and ``migrations/``
(Alembic), ``load.py`` (thousands of registrations at once, and the proof that none was half done).
"""
