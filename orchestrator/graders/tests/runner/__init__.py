"""The trusted side inside a grading box. Shipped as data: the standard library, plus the image's own pytest.

    director   root; holds the plan (which versions, in which order) and the events channel; imports nothing of the agent's
      `- zygote  root; forked before the plan is read, so that its memory never held it; has pytest imported; keeps nothing of any child
           `- warden  root; one per child; starts it, waits, ends all of its uid, wipes what it left, reports its wait status
                `- child  an own uid; imports the agent's code; hostile from then on

Written for Python 3.9 and pytest 7.2 or newer: it runs under whatever the task's image holds.
"""
