"""Options keep their views, and are options of Beam in all else."""

import copy
import pickle

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)

from h01_beam.options import Options

FLAGS = ['--runner=DirectRunner', '--project=p', '--direct_num_workers=2']


def test_a_view_is_made_once_and_shares_its_values():
    options = Options(FLAGS)
    view = options.view_as(DirectOptions)
    assert options.view_as(DirectOptions) is view and view.direct_num_workers == 2
    view.direct_num_workers = 5
    assert options.view_as(StandardOptions).view_as(DirectOptions).direct_num_workers == 5
    assert options.get_all_options()['direct_num_workers'] == 5


def test_all_options_are_those_of_beam():
    assert Options(FLAGS).get_all_options() == PipelineOptions(FLAGS).get_all_options()
    assert Options(runner='DirectRunner').view_as(StandardOptions).runner == 'DirectRunner'


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])  # noqa: S301
def test_copies_are_on_their_own(copied):
    options = Options(FLAGS)
    options.view_as(DirectOptions).direct_num_workers = 3
    other = copied(options)
    assert other.view_as(DirectOptions).direct_num_workers == 3
    other.view_as(DirectOptions).direct_num_workers = 4
    assert options.view_as(DirectOptions).direct_num_workers == 3
    pipeline = beam.Pipeline(options=options)
    assert pipeline.options.view_as(DirectOptions).direct_num_workers == 3


def test_nobody_is_impersonated_on_workers():
    options = Options([*FLAGS, '--impersonate_service_account=boss@p.iam'])
    options.view_as(GoogleCloudOptions)
    sent = pickle.dumps(options)
    assert pickle.loads(sent).view_as(GoogleCloudOptions).impersonate_service_account is None  # noqa: S301


def test_one_text_is_no_list_of_flags():
    with pytest.raises(ValueError, match='not a single string'):
        Options('--runner=DirectRunner')
