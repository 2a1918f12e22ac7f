"""What SCALE-Sim's and ZigZag's own readers make of the files that `eamsim cost --scalesim X.csv --zigzag X.yaml` writes.

Each package has an environment of its own (SCALESIM: see scalesim_cycles.py; ZIGZAG: pip install zigzag-dse six):

    SCALESIM/bin/python tests/cross_runtime/read_exports.py X.csv
    ZIGZAG/bin/python tests/cross_runtime/read_exports.py X.yaml
"""

import sys
from pathlib import Path


def scalesim_reads(path: str) -> tuple[int, int]:
    """Layers and MACs of the topology."""
    from scalesim.topology_utils import topologies  # pyright: ignore[reportMissingImports]

    topology = topologies()
    topology.load_arrays_gemm(path)  # rows of name, M, K, 1, K, 1, N, ...
    return topology.get_num_layers(), sum(int(row[1]) * int(row[2]) * int(row[6]) for row in topology.topo_arrays)


def zigzag_reads(path: str) -> tuple[int, int]:
    """Layers and MACs of the graph; exit code 1 where the validator finds a fault."""
    import yaml
    import zigzag  # pyright: ignore[reportMissingImports]
    from zigzag.parser.mapping_validator import MappingValidator  # pyright: ignore[reportMissingImports]
    from zigzag.parser.workload_factory import WorkloadFactory  # pyright: ignore[reportMissingImports]
    from zigzag.parser.workload_validator import WorkloadValidator  # pyright: ignore[reportMissingImports]

    workload = WorkloadValidator(yaml.safe_load(Path(path).read_text()))
    mapping = MappingValidator(yaml.safe_load((Path(str(zigzag.__file__)).parent / "inputs/mapping/default.yaml").read_text()))
    if not (workload.validate() and mapping.validate()):
        sys.exit(1)
    graph = WorkloadFactory(workload.normalized_data, mapping.normalized_data).create()
    return len(graph.nodes), sum(node.total_mac_count for node in graph.nodes)


if __name__ == "__main__":
    layers, macs = (scalesim_reads if sys.argv[1].endswith(".csv") else zigzag_reads)(sys.argv[1])
    print(f"{sys.argv[1]}: {layers} layers, {macs:,} MACs")
