{{- define "paceline.peer" -}}
- podSelector:
    matchLabels:
      {{- include "paceline.selectorLabels" . | nindent 6 }}
{{- end -}}

{{/* An egress rule to addresses that may be any: (dict "to" "ports"). */}}
{{- define "paceline.egressTo" -}}
- ports:
    {{- range .ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "paceline.ingressOf.gateway" -}}
- ports:
    - {port: http, protocol: TCP}
    - {port: grpc, protocol: TCP}
  {{- with .Values.networkPolicy.clients }}
  from:
    {{- toYaml . | nindent 4 }}
    {{- include "paceline.peer" (dict "root" $ "component" "test") | nindent 4 }}
  {{- end }}
{{- if include "paceline.scaled" . }}
- from:
    - namespaceSelector:
        matchLabels:
          {{- toYaml .Values.autoscaling.keda.namespaceLabels | nindent 10 }}
  ports:
    - {port: scaler, protocol: TCP}
{{- end }}
{{- end -}}

{{- define "paceline.ingressOf.verifier" -}}
- from:
    {{- include "paceline.peer" (dict "root" . "component" "gateway") | nindent 4 }}
    {{- include "paceline.peer" (dict "root" . "component" "drafter") | nindent 4 }}
  ports:
    - {port: grpc, protocol: TCP}
{{- range $pool, $values := include "paceline.pools" (dict "root" . "kind" "verifier") | fromYaml }}
{{- if gt (int $values.nodes) 1 }}
# The processes of a group trust one another, and take any port.
- from:
    {{- include "paceline.peer" (dict "root" $ "component" "verifier" "pool" $pool) | nindent 4 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "paceline.ingressOf.drafter" -}}
- from:
    {{- include "paceline.peer" (dict "root" . "component" "gateway") | nindent 4 }}
  ports:
    - {port: grpc, protocol: TCP}
{{- end -}}

{{- define "paceline.egressOf.gateway" -}}
- to:
    {{- include "paceline.peer" (dict "root" . "component" "verifier") | nindent 4 }}
    {{- include "paceline.peer" (dict "root" . "component" "drafter") | nindent 4 }}
  ports:
    - {port: grpc, protocol: TCP}
{{- include "paceline.egressToStore" . }}
{{- include "paceline.egressToHub" . }}
{{- if eq .Values.gateway.discovery.mode "kubernetes" }}
{{ include "paceline.egressTo" (dict "to" .Values.networkPolicy.apiServer "ports" .Values.networkPolicy.apiServerPorts) }}
{{- end }}
{{- end -}}

{{- define "paceline.egressOf.verifier" -}}
{{- include "paceline.egressToStore" . }}
{{- include "paceline.egressToHub" . }}
{{- range $pool, $values := include "paceline.pools" (dict "root" . "kind" "verifier") | fromYaml }}
{{- if gt (int $values.nodes) 1 }}
- to:
    {{- include "paceline.peer" (dict "root" $ "component" "verifier" "pool" $pool) | nindent 4 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "paceline.egressOf.drafter" -}}
- to:
    {{- include "paceline.peer" (dict "root" . "component" "verifier") | nindent 4 }}
  ports:
    - {port: grpc, protocol: TCP}
{{- end -}}

{{- define "paceline.egressToStore" }}
{{- if eq .Values.redis.mode "internal" }}
- to:
    {{- include "paceline.peer" (dict "root" . "component" "redis") | nindent 4 }}
  ports:
    - {port: redis, protocol: TCP}
{{- else if eq .Values.redis.mode "external" }}
{{ include "paceline.egressTo" (dict "to" .Values.networkPolicy.redis "ports" .Values.networkPolicy.redisPorts) }}
{{- end }}
{{- end -}}

{{- define "paceline.egressToHub" }}
{{- if .Values.networkPolicy.modelHub }}
{{ include "paceline.egressTo" (dict "ports" (list 443)) }}
{{- end }}
{{- end -}}
