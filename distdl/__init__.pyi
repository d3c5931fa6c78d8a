from distdl.api import Run as Run
from distdl.api import evaluate as evaluate
from distdl.api import load as load
from distdl.api import open_run as open_run
from distdl.api import plan as plan
from distdl.api import resume as resume
from distdl.api import train as train
from distdl.errors import DataCorrupt as DataCorrupt
from distdl.errors import DistdlError as DistdlError
from distdl.errors import InputError as InputError
from distdl.errors import TrainingFailed as TrainingFailed

__version__: str
