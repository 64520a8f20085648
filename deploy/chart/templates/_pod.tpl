{{/*
A pod of a service: (dict "root" "component" "pool" "values" "container" "volumes" "initContainers" "labels" "checksum").
`container` and the lists are YAML; `values` are the service's or its pool's.
*/}}
{{- define "paceline.podTemplate" -}}
{{- $values := .values -}}
metadata:
  labels:
    {{- include "paceline.podLabels" . | nindent 4 }}
    {{- with mustMergeOverwrite (dict) (default (dict) .labels) $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with mustMergeOverwrite (dict) .root.Values.commonAnnotations (default (dict) .annotations) $values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "paceline.serviceAccountName" . }}
  automountServiceAccountToken: {{ and (eq .component "gateway") (eq .root.Values.gateway.discovery.mode "kubernetes") }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "paceline.terminationSeconds" $values }}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  securityContext:
    {{- mustMergeOverwrite (deepCopy .root.Values.security.pod) $values.podSecurityContext | toYaml | nindent 4 }}
  {{- with include "paceline.scheduling" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .initContainers }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    {{- .container | nindent 4 }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- with .volumes }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "paceline.scheduling" -}}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{ mustMergeOverwrite (dict "labelSelector" (dict "matchLabels" (include "paceline.selectorLabels" $ | fromYaml))) . | toYaml | nindent 4 | trim }}
  {{- end }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- if .values.hostNetwork }}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
{{- end }}
{{- end -}}

{{/* What a service's container has whatever it runs. `env`, `mounts` and `probes` are YAML. */}}
{{- define "paceline.container" -}}
- name: {{ .component }}
  image: {{ include "paceline.image" (dict "image" .values.image "registry" .root.Values.image.registry "version" .root.Chart.AppVersion) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command:
    {{- toYaml .command | nindent 4 }}
  env:
    {{- .env | trim | nindent 4 }}
    {{- with .values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .ports }}
  ports:
    {{- range $name, $port := . }}
    - {name: {{ $name }}, containerPort: {{ $port }}, protocol: TCP}
    {{- end }}
  {{- end }}
  resources:
    {{- include "paceline.resources" .values | nindent 4 }}
  securityContext:
    {{- mustMergeOverwrite (deepCopy .root.Values.security.container) .values.containerSecurityContext | toYaml | nindent 4 }}
  {{- with .probes }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .values.preStopSeconds }}
  lifecycle:
    preStop:
      sleep: {seconds: {{ . }}}
  {{- end }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    {{- with .mounts }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* Recreate has no bounds, which the defaults give. */}}
{{- define "paceline.strategy" -}}
{{- ternary (dict "type" "Recreate") . (eq .type "Recreate") | toYaml -}}
{{- end -}}

{{/* Requests and limits, with the GPUs. */}}
{{- define "paceline.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if .gpus -}}
{{- $_ := set $resources "limits" (mustMergeOverwrite (dict .gpuResource .gpus) (default (dict) $resources.limits)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Probes of (dict "values" "startup" "live" "ready" "rarely"): three handlers as YAML, and by what less often is asked for life. */}}
{{- define "paceline.probes" -}}
{{- $probes := .values.probes -}}
startupProbe:
  {{- .startup | nindent 2 }}
  periodSeconds: {{ $probes.periodSeconds }}
  timeoutSeconds: {{ $probes.timeoutSeconds }}
  failureThreshold: {{ max 1 (ceil (divf .values.startupSeconds $probes.periodSeconds)) }}
livenessProbe:
  {{- .live | nindent 2 }}
  periodSeconds: {{ mul $probes.periodSeconds (default 1 .rarely) }}
  timeoutSeconds: {{ $probes.timeoutSeconds }}
  failureThreshold: {{ mul 2 $probes.failureThreshold }}
readinessProbe:
  {{- .ready | nindent 2 }}
  periodSeconds: {{ $probes.periodSeconds }}
  timeoutSeconds: {{ $probes.timeoutSeconds }}
  failureThreshold: {{ $probes.failureThreshold }}
{{- end -}}

{{/*
Probes of a verifier or drafter. Kubernetes' own gRPC probe speaks no TLS and has no certificate. With mutual TLS it is
seen whether the port is open, which it is from the moment that the service can serve; whether it still answers, the
service's own command asks, more rarely: that is a process of its own each time.
*/}}
{{- define "paceline.grpcProbes" -}}
{{- $port := int .values.ports.grpc -}}
{{- if .root.Values.tls.services.enabled -}}
{{- $open := printf "tcpSocket: {port: %d}" $port -}}
{{- $alive := printf "exec: {command: [paceline, health, %s]}" .component -}}
{{- include "paceline.probes" (dict "values" .values "startup" $open "live" $alive "ready" $open "rarely" 3) -}}
{{- else -}}
{{- $probe := printf "grpc: {port: %d}" $port -}}
{{- include "paceline.probes" (dict "values" .values "startup" $probe "live" $probe "ready" $probe) -}}
{{- end -}}
{{- end -}}
