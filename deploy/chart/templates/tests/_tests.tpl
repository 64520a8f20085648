{{/* What the pods of `helm test` have in common. */}}
{{- define "paceline.testPod" -}}
restartPolicy: Never
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- toYaml .Values.security.pod | nindent 2 }}
{{- end -}}

{{- define "paceline.testContainer" -}}
image: {{ include "paceline.image" (dict "image" .Values.gateway.image "registry" .Values.image.registry "version" .Chart.AppVersion) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
resources:
  requests: {cpu: 100m, memory: 128Mi}
securityContext:
  {{- toYaml .Values.security.container | nindent 2 }}
{{- end -}}

{{- define "paceline.testEnv" -}}
- name: PACELINE_GATEWAY
  value: {{ include "paceline.objectName" (dict "root" . "component" "gateway") }}:{{ .Values.gateway.service.grpcPort }}
{{- with .Values.tests.apiKey }}
{{- if .existingSecret }}
- name: PACELINE_API_KEY
  valueFrom:
    secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}
{{- end }}
{{- end }}
{{- end -}}
