{{/* Processes of one pod that share the model. */}}
{{- define "paceline.ranksOfPod" -}}
{{- if .values.tensorParallel }}{{ int .values.tensorParallel }}{{ else }}{{ max 1 (int .values.gpus) }}{{ end -}}
{{- end -}}

{{/* Whether torchrun starts the processes; empty where there is one. */}}
{{- define "paceline.ranked" -}}
{{- if or (gt (int .values.nodes) 1) (gt (include "paceline.ranksOfPod" . | int) 1) }}yes{{ end -}}
{{- end -}}

{{- define "paceline.verifierCommand" -}}
{{- $ranks := include "paceline.ranksOfPod" . -}}
{{- if gt (int .values.nodes) 1 }}
{{- $meeting := list "--nnodes=$(LWS_GROUP_SIZE)" "--node-rank=$(PACELINE_NODE_RANK)" "--master-addr=$(LWS_LEADER_ADDRESS)" (printf "--master-port=%v" (int .values.ports.rendezvous)) }}
{{- concat (list "torchrun") $meeting (list (printf "--nproc-per-node=%s" $ranks) "-m" "verifier_svc") | toJson }}
{{- else if include "paceline.ranked" . }}
{{- list "torchrun" "--standalone" (printf "--nproc-per-node=%s" $ranks) "-m" "verifier_svc" | toJson }}
{{- else }}
{{- list "paceline" "verifier" | toJson }}
{{- end }}
{{- end -}}

{{- define "paceline.verifierEnv" -}}
{{- include "paceline.commonSettings" . }}
{{- include "paceline.modelSettings" . }}
{{- include "paceline.redisSettings" . }}
{{- include "paceline.kernelEnv" . }}
{{- if gt (int .values.nodes) 1 }}
- name: PACELINE_NODE_RANK
  valueFrom:
    fieldRef: {fieldPath: "metadata.labels['leaderworkerset.sigs.k8s.io/worker-index']"}
{{- end }}
{{- end -}}

{{- define "paceline.verifierMounts" -}}
{{ include "paceline.modelMount" . }}
- {name: kernels, mountPath: /var/cache/paceline/kernels}
{{- include "paceline.certificateMounts" . }}
{{- if include "paceline.ranked" . }}
- {name: shared-memory, mountPath: /dev/shm}
{{- end }}
{{- end -}}

{{- define "paceline.verifierVolumes" -}}
{{ include "paceline.modelVolume" . }}
{{ include "paceline.kernelVolume" .values.kernelCache }}
{{- include "paceline.certificateVolumes" . }}
{{- if include "paceline.ranked" . }}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: {{ .values.sharedMemory }}}
{{- end }}
{{- end -}}

{{/* The pod of a pool; with "follower" that of the other pods of a group, which nobody calls. */}}
{{- define "paceline.verifierPod" -}}
{{- $pod := merge (dict "component" "verifier" "shared" true) . -}}
{{- $_ := set $pod "command" (include "paceline.verifierCommand" $pod | fromJsonArray) -}}
{{- $_ := set $pod "env" (include "paceline.verifierEnv" $pod) -}}
{{- $_ := set $pod "mounts" (include "paceline.verifierMounts" $pod | trim) -}}
{{- $_ := set $pod "volumes" (include "paceline.verifierVolumes" $pod | trim) -}}
{{- $_ := set $pod "initContainers" (include "paceline.initContainers" $pod | trim) -}}
{{- if not .follower -}}
{{- $_ := set $pod "ports" (dict "grpc" .values.ports.grpc "metrics" .values.ports.metrics) -}}
{{- $_ := set $pod "probes" (include "paceline.grpcProbes" $pod) -}}
{{- end -}}
{{- if gt (int .values.nodes) 1 -}}
{{- $_ := set $pod "labels" (dict "paceline.dev/rank" (ternary "follower" "leader" (default false .follower))) -}}
{{- end -}}
{{- $_ := set $pod "container" (include "paceline.container" $pod) -}}
{{- include "paceline.podTemplate" $pod -}}
{{- end -}}
