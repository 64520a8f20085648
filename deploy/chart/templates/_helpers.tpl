{{- define "paceline.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of an object of (dict "root" "component" "pool"). */}}
{{- define "paceline.objectName" -}}
{{- $parts := list (include "paceline.fullname" .root) .component -}}
{{- if .pool }}{{ $parts = append $parts .pool }}{{ end -}}
{{- join "-" $parts -}}
{{- end -}}

{{/* Labels that never change, by which pods are selected. */}}
{{- define "paceline.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
paceline.dev/pool: {{ . }}
{{- end }}
{{- end -}}

{{/* Labels of pods: none that changes with the chart's version, which would replace every pod. */}}
{{- define "paceline.podLabels" -}}
{{ include "paceline.selectorLabels" . }}
{{- if eq .component "verifier" }}
paceline.dev/model: {{ include "paceline.modelLabel" .root }}
{{- end }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "paceline.labels" -}}
{{ include "paceline.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* metadata of an object of (dict "root" "component" "pool" "annotations" "name"). */}}
{{- define "paceline.metadata" -}}
name: {{ default (include "paceline.objectName" .) .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "paceline.labels" . | nindent 2 }}
{{- with mustMergeOverwrite (dict) .root.Values.commonAnnotations (default (dict) .annotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "paceline.modelName" -}}
{{- default (base (trimSuffix "/" .Values.model.source)) .Values.model.name -}}
{{- end -}}

{{/* The model's name as a label's value, as gateways make it of the name that they serve. */}}
{{- define "paceline.modelLabel" -}}
{{- regexReplaceAll "[^A-Za-z0-9._-]" (include "paceline.modelName" .) "-" | trunc 63 | trimAll "-_." -}}
{{- end -}}

{{- define "paceline.image" -}}
{{- $path := .image.repository -}}
{{- with .registry }}{{ $path = printf "%s/%s" (trimSuffix "/" .) $path }}{{ end -}}
{{- if .image.digest -}}
{{ $path }}@{{ .image.digest }}
{{- else -}}
{{ $path }}:{{ default .version .image.tag }}
{{- end -}}
{{- end -}}

{{- define "paceline.serviceAccountName" -}}
{{- if eq .component "gateway" -}}
{{- $account := .root.Values.gateway.serviceAccount -}}
{{- default (ternary (include "paceline.objectName" .) "default" $account.create) $account.name -}}
{{- else -}}
{{- include "paceline.objectName" (dict "root" .root "component" .component) -}}
{{- end -}}
{{- end -}}

{{/* The pools of a kind, (dict "root" "kind"): YAML of name -> the kind's values with the pool's own over them. */}}
{{- define "paceline.pools" -}}
{{- range $name, $own := index .root.Values (printf "%sPools" .kind) }}
{{- if not (kindIs "invalid" $own) }}
{{- $values := deepCopy (index $.root.Values $.kind) }}
{{- if eq "neural" (default (default "" $values.variant) $own.variant) }}
{{- $values = mustMergeOverwrite $values (deepCopy $.root.Values.neuralDrafter) }}
{{- end }}
{{ $name }}: {{ mustMergeOverwrite $values $own | toJson }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A number or a word as a setting: whole numbers without exponent. */}}
{{- define "paceline.scalar" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{/* Seconds from SIGTERM's announcement to SIGKILL: all that a service does meanwhile, and some for its last words. */}}
{{- define "paceline.terminationSeconds" -}}
{{- $settings := .settings -}}
{{- add .preStopSeconds (ceil (default 0.0 $settings.drainDelaySeconds)) (ceil $settings.graceSeconds) 15 -}}
{{- end -}}
