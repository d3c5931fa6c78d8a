"""The interface of a family (`learner.py`), and what kinds of families share: classifiers, sequences, trees."""

from distdl.learner.answers import Answer as Answer
from distdl.learner.learner import Batch as Batch
from distdl.learner.learner import Column as Column
from distdl.learner.learner import Layer as Layer
from distdl.learner.learner import Learner as Learner
from distdl.learner.learner import Verbs as Verbs
from distdl.learner.learner import bare as bare
from distdl.learner.learner import frozen as frozen
