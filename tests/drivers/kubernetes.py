"""Whether the Kubernetes manifests fit together, and the Dockerfile and the binary they speak of.

    kubernetes.py POINTSMAN MANIFEST… DOCKERFILE
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib

import yaml

binary, *manifests, dockerfile = sys.argv[1:]
documents = [document for path in manifests for document in yaml.safe_load_all(open(path)) if document]


def one(kind):
    """The one document of a kind."""
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


configuration, deployment, service, budget, secret = map(
    one, ["ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "Secret"]
)
template = deployment["spec"]["template"]
pod = template["spec"]
(container,) = pod["containers"]
image = open(dockerfile).read()
(text,) = configuration["data"].values()
config = tomllib.loads(text)

# Selectors find the pods.
labels = template["metadata"]["labels"].items()
for selector in [
    deployment["spec"]["selector"]["matchLabels"],
    service["spec"]["selector"],
    budget["spec"]["selector"]["matchLabels"],
    *(spread["labelSelector"]["matchLabels"] for spread in pod["topologySpreadConstraints"]),
]:
    assert selector and selector.items() <= labels, selector
# An eviction is possible, and leaves somebody who serves.
assert 0 < budget["spec"]["minAvailable"] < deployment["spec"]["replicas"]

# Ports are those that the configuration opens, and everything that names one finds it.
port_of = lambda address: int(address.rpartition(":")[2])
ports = {port["name"]: port["containerPort"] for port in container["ports"]}
(cluster,) = config["cluster"]
assert ports["postgres"] == port_of(cluster["listen"][0]), ports
assert ports["http"] == port_of(config["admin"]["http"]), ports
assert config["admin"]["http"].startswith("0.0.0.0:"), "probes come from outside the pod"
exposed = {int(port) for port in re.search(r"^EXPOSE (.*)$", image, re.M)[1].split()}
assert exposed == set(ports.values()), exposed
assert all(port["targetPort"] in ports for port in service["spec"]["ports"])
assert template["metadata"]["annotations"]["prometheus.io/port"] == str(ports["http"])
for probe, path in [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")]:
    get = container[probe]["httpGet"]
    assert (get["path"], get["port"]) == (path, "http"), probe

# The image's user, and the folder where its binary looks for the file.
user = int(re.search(r"^USER (\d+)$", image, re.M)[1])
assert pod["securityContext"]["runAsUser"] == user
wanted = re.search(r"^ENV POINTSMAN_CONFIG=(.*)$", image, re.M)[1]
(mount,) = container["volumeMounts"]
(volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
assert volume["configMap"]["name"] == configuration["metadata"]["name"]
assert wanted == os.path.join(mount["mountPath"], *configuration["data"]), wanted

# Every secret that the file asks for is there, and no other.
asked = set(re.findall(r'env = "(\w+)"', text))
(source,) = container["envFrom"]
assert source["secretRef"]["name"] == secret["metadata"]["name"]
assert set(secret["stringData"]) == asked, asked

# There is time to leave the Service, to drain and to end.
seconds = lambda duration: int(duration.removesuffix("s"))
pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
assert pod["terminationGracePeriodSeconds"] > pause + seconds(config["shutdown_timeout"])

# The file is one that the binary takes.
with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
    file.write(text)
    file.flush()
    environment = os.environ | secret["stringData"]
    checked = subprocess.run([binary, "check", "-c", file.name], env=environment, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
print("ok")
