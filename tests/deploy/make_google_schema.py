"""Makes google_schema.json: what the resources that deploy/terraform uses take.

The schema is that of Terraform's google provider, read off the declarations that are generated
from it for the CDK, in an npm package:
    npm pack @cdktf/provider-google@16.12.1 && tar xzf cdktf-provider-google-16.12.1.tgz
    python -m tests.deploy.make_google_schema package
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESOURCES = (
    'artifact-registry-repository', 'artifact-registry-repository-iam-member', 'billing-budget',
    'cloud-scheduler-job', 'compute-firewall', 'compute-network', 'compute-subnetwork',
    'data-google-project', 'monitoring-notification-channel', 'project-iam-member',
    'project-service', 'service-account', 'service-account-iam-member', 'storage-bucket',
    'storage-bucket-iam-member',
)  # fmt: skip
FIELD = re.compile(
    r'/\*\*(?P<doc>(?:(?!\*/).)*)\*/\s*readonly (?P<name>\w+)(?P<optional>\??): (?P<type>[^;]+);',
    re.S,
)


def interfaces(text: str) -> dict[str, str]:
    """Bodies of the interfaces of a file, by name."""
    found = re.findall(r'export interface (\w+)[^{]*\{(.*?)\n\}', text, re.S)
    return dict(found)


def describe(body: str, known: dict[str, str]) -> dict[str, object]:
    """Attributes and blocks of an interface: {name: type, or the same for a block}."""
    fields: dict[str, object] = {}
    for match in FIELD.finditer(body):
        anchor = re.search(r'#(\w+) ', match['doc'])
        if not anchor:
            continue
        kind = re.sub(r' \| cdktf\.IResolvable', '', match['type'])
        inner = re.sub(r'[\[\]]', '', kind)
        entry: dict[str, object] = {'required': not match['optional']}
        if inner in known:
            entry['block'] = describe(known[inner], known)
            entry['many'] = kind.endswith('[]')
        else:
            entry['type'] = 'map(string)' if 'key: string' in kind else kind
        fields[anchor[1]] = entry
    return fields


def main(package: Path) -> None:
    version = json.loads((package / 'package.json').read_text())['cdktf']['provider']['version']
    schema: dict[str, object] = {}
    for folder in RESOURCES:
        text = (package / 'lib' / folder / 'index.d.ts').read_text()
        known = interfaces(text)
        (config,) = (name for name in known if name.endswith('Config') and 'extends cdktf.TerraformMeta'
                     in re.search(rf'interface {name}[^{{]*', text)[0])  # type: ignore[index]  # fmt: skip
        name = folder.removeprefix('data-').replace('-', '_')
        name = name if name.startswith('google') else f'google_{name}'
        getters = set(re.findall(r'get (\w+)\(\)', text))
        schema[name] = {
            'arguments': describe(known[config], known),
            'attributes': sorted(re.sub('([A-Z])', r'_\1', getter).lower() for getter in getters),
        }
    content = {'provider': 'hashicorp/google', 'version': version, 'resources': schema}
    (HERE / 'google_schema.json').write_text(json.dumps(content, indent=1, sort_keys=True) + '\n')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
