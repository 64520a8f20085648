{{/* The Service of a pool, by which gateways find its pods: (dict "root" "component" "pool" "values"). */}}
{{- define "paceline.poolService" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "paceline.metadata" . | nindent 2 }}
spec:
  # Headless: gateways choose pods themselves.
  clusterIP: None
  selector:
    {{- include "paceline.selectorLabels" . | nindent 4 }}
    {{- if gt (int (default 1 .values.nodes)) 1 }}
    paceline.dev/rank: leader
    {{- end }}
  ports:
    - {name: grpc, port: {{ .values.ports.grpc }}, targetPort: grpc, protocol: TCP}
    {{- if eq .root.Values.monitoring.monitor "ServiceMonitor" }}
    - {name: metrics, port: {{ .values.ports.metrics }}, targetPort: metrics, protocol: TCP}
    {{- end }}
{{- end -}}

{{/* Disruption budget and autoscaler of a pool: (dict "root" "component" "pool" "values" "mode" "behavior"). */}}
{{- define "paceline.poolScaling" -}}
{{- $values := .values }}
{{- if $values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "paceline.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ $values.podDisruptionBudget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "paceline.selectorLabels" . | nindent 6 }}
{{- end }}
{{- if eq .mode "keda" }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  {{- include "paceline.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    {{- include "paceline.scaleTarget" . | nindent 4 }}
  minReplicaCount: {{ $values.autoscaling.minReplicas }}
  maxReplicaCount: {{ $values.autoscaling.maxReplicas }}
  pollingInterval: {{ .root.Values.autoscaling.keda.pollingInterval }}
  cooldownPeriod: {{ .root.Values.autoscaling.keda.cooldownPeriod }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- toYaml .behavior | nindent 8 }}
  triggers:
    - type: external-push
      metadata:
        scalerAddress: {{ include "paceline.scalerHost" .root }}:{{ .root.Values.autoscaling.keda.scalerPort }}
        tier: {{ .component }}
        pool: {{ .pool }}
        {{- if .root.Values.tls.services.enabled }}
        enableTLS: "true"
      authenticationRef:
        name: {{ include "paceline.objectName" (dict "root" .root "component" "autoscaler") }}
        {{- end }}
{{- else if eq .mode "hpa" }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "paceline.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    {{- include "paceline.scaleTarget" . | nindent 4 }}
  minReplicas: {{ max 1 $values.autoscaling.minReplicas }}
  maxReplicas: {{ $values.autoscaling.maxReplicas }}
  behavior:
    {{- toYaml .behavior | nindent 4 }}
  metrics:
    - type: External
      external:
        metric:
          name: {{ .root.Values.autoscaling.hpa.metric }}
          selector:
            matchLabels: {tier: {{ .component }}, pool: {{ .pool }}}
        # The metric is a number of pods: as many are wanted as bring its share for each to 1.
        target: {type: AverageValue, averageValue: "1"}
{{- end }}
{{- end -}}

{{- define "paceline.scaleTarget" -}}
{{- if gt (int (default 1 .values.nodes)) 1 -}}
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
{{- else -}}
apiVersion: apps/v1
kind: Deployment
{{- end }}
name: {{ include "paceline.objectName" . }}
{{- end -}}
